// /proc/timer_list: the kernel's armed high-resolution timers (kernel/time/timer_list.c). Only root may read it, and
// container runtimes mask it.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace stasis::kernel {

/// The clocks that such timers run on, by their number there (enum hrtimer_base_type).
enum class TimerClock : uint8_t { monotonic, realtime, boottime, tai };
inline constexpr size_t timer_clocks = 4;

/// A timer that wakes a sleeping thread: between `soft` (what was asked for) and `hard` (with its slack), nanoseconds
/// of its clock.
struct SleepTimer {
  TimerClock clock = TimerClock::monotonic;
  int64_t soft = 0, hard = 0;
  friend auto operator<=>(const SleepTimer&, const SleepTimer&) = default;
};

struct TimerList {
  std::array<int64_t, timer_clocks> now{};  ///< when the list was begun
  std::vector<SleepTimer> sleeps;           ///< in order; timers of other kinds are left out

  /// Adds what another reading has. Timers that expire together count as often as in the reading that has more of them:
  /// one that has been armed anew in between, perhaps with another slack, is not another.
  void merge(const TimerList& other);
};
Result<TimerList> parse_timer_list(std::string_view text);
/// What stood in the list at any time of the call. The kernel lets go of its lock between two timers and goes on by
/// their rank, so that whenever one ends that it has told of, it leaves another out (print_active_timers). The next
/// reading has the ended one no longer: the list is read until two readings are the same.
Result<TimerList> read_timer_list();
/// Whether the file can be opened; what it says may still be empty.
bool may_read_timer_list();

}  // namespace stasis::kernel
