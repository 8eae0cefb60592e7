// Terminals of the machine: virtual terminals, serial lines, the console. They are there without anybody's doing, so
// they are opened again, by the path that they were opened by, or their usual one. What they show, and what has been
// typed and not read, is theirs. Those that were lent to the tree (--shell-job) are terminal.cc's.
#pragma once

#include "plan/contributor.h"
#include "resource/capture_context.h"
#include "resource/pseudo_terminal.h"
#include "resource/terminal_device.h"

namespace stasis::resource {

/// All descriptors are known: fills the device, and application.terminals if it controls a session of the tree.
void capture_machine_terminal(CaptureContext&, CapturedTerminal&);

/// application.terminals from the devices that control sessions.
void link_machine_terminals(model::Application&);

/// Where a description is opened at the restore.
std::string path_of_machine_terminal(const Terminal&);
void validate_machine_terminal(const Terminal&, Diagnostics&);

/// By the supervisor, once everybody has opened it: modes, window, exclusive use.
void furnish_machine_terminal(const Terminal&, plan::Sink&);

}  // namespace stasis::resource
