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

/// How far each runner has been seen: a vector clock, once made never changed, shared by all who have learned it.
using Snapshot = std::unordered_map<pid_t, size_t>;
using Merged = std::unordered_set<std::shared_ptr<const Snapshot>>;

/// What one runner knows of the others. At a barrier everybody learns of everybody, so knowledge is held as shared
/// snapshots; one that contains what the runner knew when it had its own last word in it replaces all older ones.
class Knowledge {
 public:
  bool reaches(pid_t tid, size_t step) const {
    return std::ranges::any_of(held_, [&](const Held& held) {
      const auto known = held.snapshot->find(tid);
      return known != held.snapshot->end() && known->second >= step;
    });
  }
  /// `self` and `now` are the learner and its step.
  void learn(std::shared_ptr<const Snapshot> snapshot, pid_t self, size_t now) {
    if (const auto mine = snapshot->find(self); mine != snapshot->end())
      std::erase_if(held_, [&](const Held& held) { return held.since <= mine->second; });
    held_.push_back({std::move(snapshot), now});
  }
  /// The same knowledge in somebody new, whose steps begin now.
  Knowledge inherited(size_t now) const {
    Knowledge copy = *this;
    for (auto& held : copy.held_) held.since = now;
    return copy;
  }
  void merge_into(Snapshot& sum, Merged& merged) const {
    for (const auto& held : held_) {
      if (!merged.insert(held.snapshot).second) continue;
      for (const auto& [tid, step] : *held.snapshot) {
        auto& known = sum[tid];
        known = std::max(known, step);
      }
    }
  }

 private:
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
    std::erase_if(reads_, [&](const Stamp& read) { return read.tid == now.tid; });
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
  const Stamp& written() const { return written_; }

 private:
  Stamp written_;
  std::vector<Stamp> reads_;
};

}  // namespace stasis::plan
