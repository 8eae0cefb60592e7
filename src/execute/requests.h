// Commands whose runner waits for stasis: what those who serve them need of the tree being built.
#pragma once

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>

#include "base/result.h"
#include "base/types.h"

namespace stasis::execute {

struct RequestScene {
  std::span<uint32_t> counters;                ///< of the agent area
  std::atomic<uint64_t>& served;               ///< grows with every part of what they wait for: a sign of headway
  std::function<bool()> has_failed;            ///< nobody waits for anything any more
  std::function<void()> cancel;                ///< makes all who wait give up
  std::function<Result<pid_t>(Pid)> host_pid;  ///< of a process that runs commands, as we see it

  uint32_t value(uint32_t counter) const { return __atomic_load_n(&counters[counter], __ATOMIC_ACQUIRE); }
  /// Bounded: a wake-up that was lost costs a moment and not forever.
  void sleep_on(uint32_t counter, uint32_t seen) const {
    const timespec pause{0, 20'000'000};
    syscall(SYS_futex, &counters[counter], FUTEX_WAIT, seen, &pause, nullptr, 0);
  }
  void wake(uint32_t counter) const {
    syscall(SYS_futex, &counters[counter], FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  }
  void post(uint32_t counter) const {
    __atomic_add_fetch(&counters[counter], 1, __ATOMIC_ACQ_REL);
    wake(counter);
  }
};

}  // namespace stasis::execute
