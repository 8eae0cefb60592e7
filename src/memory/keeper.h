// The keeper: a small process of ours that holds the trackers of a tree between two commands.
//
// Whoever closes the last descriptor of a userfaultfd ends the tracking, so somebody has to hold them open. The next
// command finds the keeper by the root task alone: it listens on an abstract unix socket that is named after the
// task's pid namespace, pid and start time (and so goes away with the keeper, and belongs to the network namespace).
// Only the keeper's own user and root may speak with it, and it is believed only if it is ours or root's.
//
// It knows which round (which images) the protection of the pages belongs to: between begin() and commit() none. It
// ends with the root task, on request, or when its caller has gone and left it without a round: then a command has died
// half-way, and what its predecessor's images say of the pages no longer holds. The kernel ends the tracking with it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/dirty_tracking.h"

namespace stasis::memory {

/// A name for a round, in hexadecimal: random, so that images of one tree are never taken for those of another.
Result<std::string> new_round();

/// A connection to a keeper.
class Keeper {
 public:
  /// The one of the tree below `root`; nothing if there is none.
  static Result<std::optional<Keeper>> find(pid_t root);
  /// Starts one. It holds nothing yet.
  static Result<Keeper> start(pid_t root);

  struct Kept {
    std::string round;  ///< "": none
    Trackers trackers;
  };
  Result<Kept> fetch();
  /// From here on there is no round, until commit().
  Status begin();
  /// The round is complete: these are its trackers. Others are closed.
  Status commit(const std::string& round, const Trackers&);
  /// Ends it, and with it the tracking, unless trackers are held open here.
  Status stop();
  pid_t pid() const { return pid_; }

 private:
  explicit Keeper(UniqueFd connection) : connection_(std::move(connection)) {}
  static Result<std::optional<Keeper>> connect(const std::string& name);
  Status ask(uint32_t kind, const std::string& round = {});

  UniqueFd connection_;
  pid_t pid_ = 0;
};

}  // namespace stasis::memory
