// How much memory a snapshot costs while it is written: every page that the application changes in that time exists
// twice. Past a limit the application is stopped until everything is written.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "capture/capture.h"
#include "capture/freezer.h"
#include "capture/twins.h"
#include "kernel/proc.h"

namespace stasis::capture {

class GrowthWatch {
 public:
  /// Begins to watch. `limit` in bytes.
  GrowthWatch(std::vector<Twin> twins, uint64_t limit, const AtPoint& at_point);
  ~GrowthWatch();
  GrowthWatch(const GrowthWatch&) = delete;
  GrowthWatch& operator=(const GrowthWatch&) = delete;

  /// Everything is written: who was stopped goes on.
  SnapshotGrowth finish();

 private:
  void work();
  bool must_stop();
  uint64_t growth();
  void stop_tree();
  void abandon(const std::string& reason);
  void wait_for_end();

  std::vector<Twin> twins_;
  uint64_t limit_, reserve_ = 0;
  const AtPoint& at_point_;
  uint64_t round_ = 0;
  SnapshotGrowth seen_;
  std::mutex mutex_;
  std::condition_variable ended_changed_;
  bool ended_ = false;
  std::thread thread_;  ///< ptrace(2) belongs to it
};

}  // namespace stasis::capture
