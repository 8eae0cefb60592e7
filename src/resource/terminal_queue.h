// What waits in a pseudo-terminal: input that its slave side has not read yet, output that its master side has not.
//
// The kernel shows neither without giving it away, so a dump reads both and puts them back at once. Output comes
// back by writing to the slave side without output processing. Input comes back by writing to the master side, with
// modes under which the line discipline (drivers/tty/n_tty.c) takes every byte as it is: the ends of lines stand in the
// bytes, and those of files are typed again. It works through its input when it likes; that it is done tells the echo.
#pragma once

#include "base/diagnostics.h"
#include "plan/call.h"
#include "resource/terminal_device.h"

namespace stasis::resource {

/// Of a pair whose modes are known already. What cannot be looked at is said in `diagnostics`.
Status capture_queues(int master, TerminalDevice&, const std::string& subject, Diagnostics& diagnostics);

/// Calls that fill the queues of a new pair, and set its modes.
plan::Calls fill_queues(const TerminalDevice&, int master, int slave);

}  // namespace stasis::resource
