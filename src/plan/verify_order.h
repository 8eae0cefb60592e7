// Who knows of whom: vector clocks over the threads of a Program.
//
// Commands of different threads have no order but what FORK, START_THREAD, WAIT, POST and AWAIT enforce. What one
// command needs of another thread's doing must be certain to have happened, and what would spoil it must be certain to
// come later: for every piece of state that several threads touch, `Shared` tells whether all accesses are ordered, as
// detectors of data races do.
#pragma once

#include <sys/types.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace stasis::plan {

struct Stamp {  ///< the step of a thread; 0, 0: before everything
  pid_t tid = 0;
  size_t step = 0;
};

/// How far each runner has been seen: a vector clock.
using Clock = std::unordered_map<pid_t, size_t>;

/// One that is never changed any more, shared by all who have learned it. What somebody has learned since stands above
/// it, instead of in a copy of it: layers, each at least twice as large as the one above.
struct Snapshot {
  Clock steps;
  std::shared_ptr<const Snapshot> below;

  size_t step_of(pid_t tid) const {
    size_t known = 0;
    for (const auto* layer = this; layer != nullptr; layer = layer->below.get()) {
      if (const auto own = layer->steps.find(tid); own != layer->steps.end()) known = std::max(known, own->second);
    }
    return known;
  }
  size_t size() const { return steps.size() + (below == nullptr ? 0 : below->size()); }
};
using Merged = std::unordered_set<std::shared_ptr<const Snapshot>>;

/// What one runner knows of the others, in the snapshots that it has learned. One that contains what the runner knew
/// when it had its own last word in it replaces all older ones.
class Knowledge {
 public:
  bool reaches(pid_t tid, size_t step) const {
    return std::ranges::any_of(held_, [&](const Held& held) { return held.snapshot->step_of(tid) >= step; });
  }
  /// `self` and `now` are the learner and its step.
  void learn(std::shared_ptr<const Snapshot> snapshot, pid_t self, size_t now) {
    if (const size_t mine = snapshot->step_of(self); mine != 0)
      std::erase_if(held_, [&](const Held& held) { return held.since <= mine; });
    held_.push_back({std::move(snapshot), now});
    if (held_.size() > most_held) held_ = {{all(), now}};
  }
  /// The same knowledge in somebody new, whose steps begin now.
  Knowledge inherited(size_t now) const {
    Knowledge copy = *this;
    for (auto& held : copy.held_) held.since = now;
    return copy;
  }
  void merge_into(Clock& sum, Merged& merged) const {
    for (const auto& held : held_) merge(held.snapshot, sum, merged);
  }
  static void merge(const std::shared_ptr<const Snapshot>& snapshot, Clock& sum, Merged& merged) {
    for (auto layer = snapshot; layer != nullptr && merged.insert(layer).second; layer = layer->below)
      merge(layer->steps, sum);
  }
  /// All of it in one: what is not in the largest stands above that.
  std::shared_ptr<Snapshot> all() const {
    auto sum = std::make_shared<Snapshot>();
    size_t largest = 0;
    for (const auto& held : held_) {
      if (const size_t size = held.snapshot->size(); size > largest) sum->below = held.snapshot, largest = size;
    }
    Merged merged;
    for (auto layer = sum->below; layer != nullptr; layer = layer->below) merged.insert(layer);
    merge_into(sum->steps, merged);
    settle(*sum);
    return sum;
  }
  /// `more` above what is in `base`.
  static std::shared_ptr<const Snapshot> stacked(const Clock& more, std::shared_ptr<const Snapshot> base) {
    auto sum = std::make_shared<Snapshot>(Snapshot{more, std::move(base)});
    settle(*sum);
    return sum;
  }

 private:
  static constexpr size_t most_held = 32;
  /// Lower layers that are not large enough become one with the uppermost.
  static void settle(Snapshot& sum) {
    while (sum.below != nullptr && 2 * sum.steps.size() >= sum.below->steps.size()) {
      merge(sum.below->steps, sum.steps);
      sum.below = sum.below->below;
    }
  }
  static void merge(const Clock& more, Clock& sum) {
    for (const auto& [tid, step] : more) {
      auto& known = sum[tid];
      known = std::max(known, step);
    }
  }
  struct Held {
    std::shared_ptr<const Snapshot> snapshot;
    size_t since = 0;  ///< the runner's own step when it learned it
  };
  std::vector<Held> held_;
};

struct Runner {
  size_t steps = 0;
  Knowledge knowledge;
};

/// When a piece of state was last changed, and who has relied on it since.
class Shared {
 public:
  /// `is_before(stamp)`: certain to have happened before now. False: the order is open.
  template <typename IsBefore>
  bool read(Stamp now, IsBefore is_before) {
    if (!is_before(written_)) return false;
    if (reads_.size() >= many_reads_) {
      std::erase_if(reads_, is_before);  // whoever comes after this one comes after those, too
      many_reads_ = std::max(few_reads, 2 * reads_.size());
    }
    reads_.push_back(now);
    return true;
  }
  template <typename IsBefore>
  bool write(Stamp now, IsBefore is_before) {
    if (!is_before(written_) || !std::ranges::all_of(reads_, is_before)) return false;
    reads_.clear();
    written_ = now;
    return true;
  }
  /// Whether all accesses so far are certain to be over.
  template <typename IsBefore>
  bool is_quiet(IsBefore is_before) const {
    return is_before(written_) && std::ranges::all_of(reads_, is_before);
  }
  const Stamp& written() const { return written_; }

 private:
  static constexpr size_t few_reads = 4;

  Stamp written_;
  std::vector<Stamp> reads_;
  size_t many_reads_ = few_reads;  ///< so many are looked through for those that need not be kept
};

}  // namespace stasis::plan
