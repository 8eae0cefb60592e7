// Commands that others come to, perhaps in the background: page-server, lazy-pages, and dump --lazy-pages.
#pragma once

#include <sys/types.h>

#include "base/result.h"
#include "base/unique_fd.h"
#include "cli/session.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace stasis::cli {

/// --pidfile, if it is given. After an error there is none.
Status write_pidfile(const Session&, pid_t);
void remove_pidfile(const Session&);

/// Of a process that goes on alone: it gets a session of its own, and nothing of the caller's terminal.
Status leave_terminal();

/// Writes the zero byte of criu's --status-fd, which says that others may come, and closes the descriptor. Negative:
/// nobody wants to know.
Status tell_status(int fd);
/// The same, and the scripts.
Status say_ready(const Session&, int status_fd);

/// SIGTERM, SIGINT and SIGHUP, which only say from here on that somebody wants us to end.
class Ending {
 public:
  static Result<Ending> watch();
  /// A signalfd.
  int descriptor() const { return signals_.get(); }
  /// Until there is something to read; an error if we are to end.
  Status wait_for(int descriptor) const;

 private:
  explicit Ending(UniqueFd signals) : signals_(std::move(signals)) {}
  UniqueFd signals_;
};

CLI::Option* add_status_fd(CLI::App&, int& fd, const char* when);

}  // namespace stasis::cli
