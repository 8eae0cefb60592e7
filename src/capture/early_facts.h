// What /proc says of the processes, read while the tree is walked: that is ptrace(2), which only one thread may use.
#pragma once

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "capture/freezer.h"
#include "capture/walk.h"
#include "resource/capture_context.h"

namespace stasis::capture {

class EarlyFacts {
 public:
  /// Begins to read. The processes must be stopped until this object is gone. `flags`: how to read those of mappings
  /// without a look at their pages; nullptr: from smaps.
  EarlyFacts(const std::vector<FrozenProcess>&, const kernel::MappingFlags* flags);
  /// Nobody wants what is not read yet.
  ~EarlyFacts() { next_ = readings_.size(); }
  EarlyFacts(const EarlyFacts&) = delete;
  EarlyFacts& operator=(const EarlyFacts&) = delete;
  /// Helps with the rest and gives each process its facts. What could not be read is left out: whoever asks for it
  /// reads it again and gets the error.
  void hand_out(std::vector<LiveProcess>&);

 private:
  struct Reading {
    pid_t witness = 0;
    std::shared_ptr<const resource::ProcessFacts> facts;
  };
  void work();

  const kernel::MappingFlags* flags_;
  std::vector<Reading> readings_;
  std::atomic<size_t> next_{0};
  std::jthread thread_;  // last: it uses the above
};

}  // namespace stasis::capture
