// Ends a restore that would never end by itself: a task has died without saying so, and nobody would ever post what
// others wait for; or nobody makes any headway, for whatever reason.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "execute/host_threads.h"
#include "execute/lower.h"
#include "execute/shared_area.h"

namespace stasis::execute {

class Watchdog {
 public:
  struct Scene {
    const SharedArea& area;
    const Lowered& lowered;
    const std::atomic<uint64_t>& served;  ///< grows with what stasis does for those who wait for it
    /// The root as we see it, if it is a pid namespace's init: the tree's numbers are those of that namespace. 0: it is
    /// not there yet. Null: they are ours.
    std::function<pid_t()> namespace_init;
    std::chrono::milliseconds patience;  ///< with a tree in which nothing moves
  };
  /// Where a slot stands.
  struct Position {
    uint32_t slot = 0, instruction = 0;
  };

  explicit Watchdog(Scene);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // ---- why it has cancelled the restore

  /// The first whose thread was found dead, and where it stood; nothing: nobody.
  std::optional<Position> dead() const;
  /// All who were on their way when nobody had made headway for so long; nothing: this has not happened.
  std::optional<std::vector<Position>> standing() const;

 private:
  void watch();
  bool look_for_dead();
  bool has_moved();
  bool somebody_works();
  bool is_on_its_way(uint32_t index) const;
  bool may_be_dead(uint32_t index);
  const agent::Instruction* instruction_of(uint32_t index) const;
  std::optional<HostThread> find(uint32_t index);
  std::vector<Position> positions() const;

  const Scene scene_;
  std::vector<Runner> runners_;  ///< of the slots
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool done_ = false;
  std::optional<Position> dead_;
  std::optional<std::vector<Position>> standing_;

  // -- of the thread that watches
  std::map<pid_t, HostThread> known_;      ///< threads of a namespace, by its numbers
  bool has_searched_ = false;              ///< in this round
  std::map<uint32_t, uint32_t> suspects_;  ///< slots that looked dead the last time, and where they stood
  std::vector<uint32_t> picture_;          ///< of the area: what changes is headway
  std::map<uint32_t, uint64_t> sleeps_;    ///< how often who works had gone to sleep
  std::thread thread_;                     // last: it uses all of the above
};

}  // namespace stasis::execute
