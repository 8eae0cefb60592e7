// Pseudo-terminals whose master side is part of the tree: capture of what both sides have, and the commands that give
// it to a new pair. Masters and slaves themselves are made by terminal.cc.
#pragma once

#include <map>
#include <span>

#include "base/unique_fd.h"
#include "plan/contributor.h"
#include "resource/capture_context.h"
#include "resource/terminal_device.h"

namespace stasis::resource {

/// Descriptors of ours of a terminal while the tree's are captured.
struct CapturedTerminal {
  std::shared_ptr<TerminalDevice> device;
  std::string subject;  ///< the first descriptor that was seen
  ObjectId master;      ///< its description; 0: none is in the tree
  UniqueFd master_fd, slave_fd;
  bool slave_hung_up = false;
};
/// By device number. Kept by the context (CaptureContext::kept).
using CapturedTerminals = std::map<uint32_t, CapturedTerminal>;

/// The group that /proc or a terminal calls `host_group`, if somebody of the session is in it; 0: nobody is.
Pid group_in_session(CaptureContext&, Pid session, pid_t host_group);

/// All descriptors are known: fills the device of a pair and application.terminals.
Status capture_pair(CaptureContext&, CapturedTerminal&);

/// Commands for a pair that has just been opened (plan::DescriptionMaker::furnish_terminal).
void furnish_pair(const TerminalDevice&, int master, int slave, plan::Sink&);
/// What would be in the way before everybody has opened it.
bool starts_late(const TerminalDevice&);
void start_pair(const TerminalDevice&, const model::OpenDescription&, int master, plan::Sink&);
/// The descriptions of one slave side whose master has been closed.
void make_hung_up(const TerminalDevice&, std::span<const plan::Placement>, plan::Sink&);

/// model::Application::terminals from the devices, once all tasks are known.
Status link_terminals(model::Application&);

}  // namespace stasis::resource
