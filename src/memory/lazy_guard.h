// What happens to processes that lack memory when whoever serves it dies.
//
// The kernel would say nothing: with the last descriptor of a userfaultfd goes the watching, and pages that are missing
// are zeros from then on. So the service has a child, its guard, with whom it shares the table of descriptors
// (clone(2), CLONE_FILES): whatever the one has open outlives it in the other. The guard ends the application then, and
// tells why. A service whose guard is killed goes on alone. (The guard is the child because keys are not handed to
// children.)
#pragma once

#include <sys/types.h>

#include <functional>

#include "base/result.h"

namespace stasis::memory {

class LazyGuard {
 public:
  /// `tell` is called in the guard, if it had to end an application.
  static Result<LazyGuard> start(const std::function<void(const Error&)>& tell);
  LazyGuard(LazyGuard&& other) noexcept;
  LazyGuard& operator=(LazyGuard&&) = delete;
  /// Nobody has to be guarded any more.
  ~LazyGuard();

 private:
  explicit LazyGuard(pid_t pid) : pid_(pid) {}
  pid_t pid_;
};

/// Kills the processes of which pidfds are open here, and all below them. Whoever is left and touches a page that is
/// missing, in memory that userfaultfds watch which are open here, gets SIGBUS (Linux 6.6). Returns when nobody is
/// left. How many processes were killed.
size_t end_watched_processes();

}  // namespace stasis::memory
