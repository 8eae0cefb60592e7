#include "capture/waiting.h"

#include <sched.h>
#include <sys/wait.h>

#include <algorithm>

namespace stasis::capture {
namespace {

/// SIGCHLD is not sent to a process that ignores it, so nobody sleeps longer than this.
constexpr std::chrono::milliseconds longest_sleep{2};
/// A tracee that runs on another CPU needs microseconds: giving way is quicker than sleeping.
constexpr int yields = 20;

}  // namespace

Waiting::Waiting() {
  sigemptyset(&child_signal_);
  sigaddset(&child_signal_, SIGCHLD);
  pthread_sigmask(SIG_BLOCK, &child_signal_, &before_);
}

Waiting::~Waiting() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

Result<kernel::Waited> Waiting::wait(pid_t tid, Clock::time_point deadline) const {
  for (int round = 0;; ++round) {
    auto waited = TRY(kernel::wait_for(tid, WNOHANG));
    if (waited.tid != 0) return waited;
    if (round < yields) {
      sched_yield();
      continue;
    }
    const auto left = deadline - Clock::now();
    if (left <= Clock::duration::zero()) return waited;
    const auto pause = std::min<Clock::duration>(left, longest_sleep);
    const timespec time{0, std::chrono::duration_cast<std::chrono::nanoseconds>(pause).count()};
    sigtimedwait(&child_signal_, nullptr, &time);
  }
}

}  // namespace stasis::capture
