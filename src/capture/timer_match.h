// Which timer of the kernel's list belongs to which sleeping thread. Pure.
//
// The list does not say whose a timer is. But a thread's timer is there while it sleeps and gone while it is stopped,
// and comes back with the same expiry. So threads that could be taken for each other sleep in turns: each in those
// rounds that its number has bits for. Timers of other processes do not keep to that, unless another dump numbers its
// threads at the same time: who could still be taken for somebody else after those rounds sleeps by chance.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "kernel/timer_list.h"

namespace stasis::capture {

class TimerMatch {
 public:
  struct Sleep {
    kernel::TimerClock clock = kernel::TimerClock::monotonic;
    uint64_t duration_ns = 0;  ///< what was asked for: no more can remain
    bool exact = false;        ///< the timer has no slack
  };

  /// The list while all of them sleep. Dumps that run at the same time must have different seeds.
  TimerMatch(std::vector<Sleep> sleeps, const kernel::TimerList& all_asleep, uint64_t seed);

  /// Who sleeps in the next round, by index; nothing: no round is left, or none is needed.
  std::optional<std::vector<bool>> next_round();
  /// The list during that round.
  void learn(const std::vector<bool>& asleep, const kernel::TimerList&);

  /// What remained of a sleep when all slept; nothing if its timer is not known.
  std::optional<uint64_t> remaining(size_t index) const;

 private:
  using Key = std::pair<kernel::TimerClock, int64_t>;  ///< poll's slack is estimated anew each time; this stays
  static std::map<Key, size_t> count(const kernel::TimerList&);
  std::vector<bool> by_number(size_t round, size_t bits) const;
  std::vector<bool> by_chance();
  bool is_open(size_t index) const { return candidates_[index].size() > 1; }
  void exclude_taken();

  kernel::TimerList first_;
  std::map<Key, size_t> counts_;
  std::vector<std::vector<Key>> candidates_;
  std::vector<size_t> open_;  ///< after the first list: position is the number whose bits count
  size_t round_ = 0;
  std::mt19937_64 random_;
};

}  // namespace stasis::capture
