// Serves the missing pages of one restore: faults first, then what is near them, then the rest.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/lazy_link.h"
#include "memory/lazy_space.h"

namespace stasis::memory {

struct LazyServiceOptions {
  /// Where the pages of the memory that the images name after this task come from.
  std::function<Result<LazySource>(pid_t owner)> source;
  PageFetcher* fetcher = nullptr;  ///< for what the images lack
  std::function<void(const std::string&)> log;
  bool only_faults = false;  ///< for tests: nothing comes that nobody waits for
};

class LazyService {
 public:
  /// `signals`: a signalfd. What comes by it ends the waiting for a restore; one that has begun is served to its end.
  LazyService(LazyListener, int signals, LazyServiceOptions);

  /// Until all memory of the restored processes is there, or nobody is left who has it; then the fetching is ended,
  /// too. An error: pages were lost, or the restore has failed; then the application has been ended
  /// (end_watched_processes), before a page could be missed.
  Status run();

 private:
  Status wait_for_restore();
  Status serve();
  /// Puts some pages somewhere, if they can be put anywhere. How long to wait then for something to happen.
  Result<int> fill_some();
  void wait(int timeout_ms);
  void heed_signal();
  Status hear();
  void begin_space(LazyOrder);
  void need(const LazyOrder&);
  /// Makes sure, before the tree may run, that whoever has the rest of its memory knows of it.
  Status take_over();
  Status commit();
  /// What has been fetched goes to where it is owed.
  Status take_in();
  Status end_fetching();
  bool is_over() const { return is_committed_ && spaces_.empty() && !connection_.valid(); }

  LazyListener listener_;
  int signals_;
  LazyServiceOptions options_;
  UniqueFd connection_;
  std::optional<Error> error_;  ///< that the restore will be told
  bool is_ended_ = false, is_asked_to_commit_ = false, is_committed_ = false;
  bool has_come_ = false;            ///< something from the fetcher
  std::vector<UniqueFd> processes_;  ///< kept for end_watched_processes()
  std::vector<LazySpace> spaces_;
  std::vector<bool> is_ready_;  ///< of those: something has happened in it
  size_t turn_ = 0;
};

}  // namespace stasis::memory
