// TCP connections of a restore that fails.
#pragma once

#include <sys/types.h>

#include <set>
#include <vector>

#include "plan/program.h"

namespace stasis::execute {

/// A socket in repair mode is gone without a word when its process is killed, and peers and ports are there for another
/// restore. But while what was never sent is written again, and from END_REPAIR on, it is an ordinary socket: it would
/// say farewell, and try for minutes, with no process behind it, to deliver what is in its queue.
class ConnectionEnds {
 public:
  explicit ConnectionEnds(const plan::Program&);
  /// Stops them, and then puts all their connections into repair mode. Once for each; what fails here is no error, for
  /// they are killed next.
  void prepare(const std::vector<pid_t>& doomed);

 private:
  bool has_connections_ = false;
  std::set<pid_t> prepared_;
};

}  // namespace stasis::execute
