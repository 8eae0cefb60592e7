// Waiting for tracees with a deadline.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <chrono>

#include "base/result.h"
#include "kernel/ptrace.h"

namespace stasis::capture {

using Clock = std::chrono::steady_clock;

inline uint64_t microseconds(Clock::duration duration) {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(duration).count());
}
/// `seconds` 0: there is no limit.
inline Clock::time_point deadline_after(Clock::time_point start, unsigned seconds) {
  constexpr auto forever = std::chrono::hours(24);
  return seconds != 0 ? start + std::chrono::seconds(seconds) : start + forever;
}

/// While it lives, SIGCHLD is blocked in this thread, so that a stop of a tracee can be slept for and not be missed:
/// the kernel sends SIGCHLD to the tracer for each, and a blocked one stays pending.
class Waiting {
 public:
  Waiting();
  ~Waiting();
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;

  /// The next status of this tracee. With the deadline passed: tid 0 in the answer. ErrorCode::gone: nobody to wait
  /// for.
  Result<kernel::Waited> wait(pid_t tid, Clock::time_point deadline) const;

 private:
  sigset_t child_signal_;
  sigset_t before_;
};

}  // namespace stasis::capture
