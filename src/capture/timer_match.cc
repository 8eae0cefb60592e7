#include "capture/timer_match.h"

#include <algorithm>
#include <bit>

namespace stasis::capture {
namespace {

/// A sleep may end this much later than was asked for: what poll allows itself at most (fs/select.c, MAX_SLACK), and
/// as much again. A task that has asked for more slack by prctl(2) may not find its timer.
constexpr int64_t most_slack_ns = 200'000'000;

/// A timer of somebody else that comes and goes is taken for a thread's own once in so many powers of two.
constexpr size_t rounds_by_chance = 24;

}  // namespace

std::map<TimerMatch::Key, size_t> TimerMatch::count(const kernel::TimerList& list) {
  std::map<Key, size_t> counts;
  for (const auto& timer : list.sleeps) ++counts[{timer.clock, timer.soft}];
  return counts;
}

TimerMatch::TimerMatch(std::vector<Sleep> sleeps, const kernel::TimerList& all_asleep, uint64_t seed)
    : first_(all_asleep), counts_(count(all_asleep)), candidates_(sleeps.size()), random_(seed) {
  for (size_t index = 0; index < sleeps.size(); ++index) {
    const auto& sleep = sleeps[index];
    for (const auto& timer : all_asleep.sleeps) {
      const int64_t left = timer.soft - all_asleep.now[static_cast<size_t>(timer.clock)] - most_slack_ns;
      const bool fits = left <= 0 || static_cast<uint64_t>(left) <= sleep.duration_ns;
      if (timer.clock == sleep.clock && fits && (!sleep.exact || timer.soft == timer.hard))
        candidates_[index].emplace_back(timer.clock, timer.soft);
    }
    std::ranges::sort(candidates_[index]);
    const auto twice = std::ranges::unique(candidates_[index]);
    candidates_[index].erase(twice.begin(), twice.end());
  }
  exclude_taken();
  for (size_t index = 0; index < sleeps.size(); ++index) {
    if (is_open(index)) open_.push_back(index);
  }
}

/// A timer that can only be one thread's is nobody else's.
void TimerMatch::exclude_taken() {
  std::map<Key, size_t> taken;
  std::vector<bool> is_counted(candidates_.size());
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t index = 0; index < candidates_.size(); ++index) {
      if (is_counted[index] || candidates_[index].size() != 1) continue;
      is_counted[index] = changed = true;
      const Key key = candidates_[index].front();
      if (++taken[key] < counts_[key]) continue;
      for (auto& others : candidates_) {
        if (others.size() > 1) std::erase(others, key);
      }
    }
  }
}

std::optional<std::vector<bool>> TimerMatch::next_round() {
  // So many bits that no number has all of them: everybody is left out once. After all bits come their opposites, for
  // timers of others that happened to expire when somebody was left out.
  const auto bits = static_cast<size_t>(std::bit_width(open_.size()));
  const bool is_needed = std::ranges::any_of(open_, [&](size_t index) { return is_open(index); });
  if (!is_needed || round_ == 2 * bits + rounds_by_chance) return std::nullopt;
  const size_t round = round_++;
  return round < 2 * bits ? by_number(round, bits) : by_chance();
}

std::vector<bool> TimerMatch::by_number(size_t round, size_t bits) const {
  std::vector<bool> asleep(candidates_.size());
  for (size_t position = 0; position < open_.size(); ++position) {
    const bool bit = (position >> (round % bits) & 1) != 0;
    asleep[open_[position]] = bit == (round < bits);
  }
  return asleep;
}

std::vector<bool> TimerMatch::by_chance() {
  std::vector<bool> asleep(candidates_.size());
  for (const size_t index : open_) asleep[index] = is_open(index) && (random_() & 1) != 0;
  return asleep;
}

void TimerMatch::learn(const std::vector<bool>& asleep, const kernel::TimerList& list) {
  const auto now = count(list);
  const auto counted = [&](const Key& key) {
    const auto found = now.find(key);
    return found == now.end() ? 0 : found->second;
  };
  for (const size_t index : open_) {
    std::erase_if(candidates_[index],
                  [&](const Key& key) { return asleep[index] ? counted(key) == 0 : counted(key) >= counts_.at(key); });
  }
  exclude_taken();
}

std::optional<uint64_t> TimerMatch::remaining(size_t index) const {
  if (candidates_[index].size() != 1) return std::nullopt;
  const auto& [clock, expiry] = candidates_[index].front();
  const int64_t left = expiry - first_.now[static_cast<size_t>(clock)];
  return left > 0 ? static_cast<uint64_t>(left) : 0;
}

}  // namespace stasis::capture
