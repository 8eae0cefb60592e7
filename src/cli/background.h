// Commands that go on in the background, for others to come to: page-server and lazy-pages.
#pragma once

#include <sys/types.h>

#include "base/result.h"
#include "cli/session.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace stasis::cli {

/// --pidfile, if it is given. After an error there is none.
Status write_pidfile(const Session&, pid_t);

/// Of a process that goes on alone: it gets a session of its own, and nothing of the caller's terminal.
Status leave_terminal();

/// Writes the zero byte of criu's --status-fd, which says that others may come, and closes the descriptor. Negative:
/// nobody wants to know.
Status tell_status(int fd);

CLI::Option* add_status_fd(CLI::App&, int& fd, const char* when);

}  // namespace stasis::cli
