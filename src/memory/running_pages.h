// Pages of a task that runs on: what is not there any more reads as zeros.
#pragma once

#include <atomic>

#include "memory/pages.h"

namespace stasis::memory {

/// For pages that are write-protected while they are copied: what is written or unmapped meanwhile is copied in the
/// next round. What cannot be read must not be stored as if it were zeros for good: its run must not keep zeros.
class RunningPages : public PageSource {
 public:
  explicit RunningPages(pid_t host_pid) : pages_(host_pid) {}
  Status read(uint64_t address, std::span<uint8_t> buffer) override;
  Status read_ranges(std::span<const AddressRange> ranges, std::span<uint8_t> buffer) override;

 private:
  ProcessPages pages_;
  std::atomic<bool> gone_{false};  ///< the whole task
};

}  // namespace stasis::memory
