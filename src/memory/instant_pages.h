// The pages of one address space as they were in one instant, while the process it belongs to goes on.
#pragma once

#include <memory>
#include <vector>

#include "memory/held_memory.h"
#include "memory/pages.h"

namespace stasis::memory {

/// Stretches of memory copied into ours.
class CopiedPages {
 public:
  /// Of a live, stopped task; `ranges` ascend.
  static Result<CopiedPages> copy(pid_t host_pid, std::vector<AddressRange> ranges);
  uint64_t size() const { return size_; }
  /// Takes what there is of it from the start of [address, address + buffer.size()): how many bytes. If none, `next` is
  /// where the next copied byte lies (~0: nowhere).
  uint64_t take(uint64_t address, std::span<uint8_t> buffer, uint64_t& next) const;

 private:
  std::vector<AddressRange> ranges_;
  std::vector<uint64_t> offsets_;  ///< of each range in bytes_
  std::unique_ptr<uint8_t[]> bytes_;
  uint64_t size_ = 0;
};

/// What is copied comes from there, everything else from the held memory, if there is one.
class InstantPages final : public PageSource {
 public:
  InstantPages(CopiedPages copied, std::shared_ptr<HeldMemory> held)
      : copied_(std::move(copied)), held_(std::move(held)) {}
  Status read(uint64_t address, std::span<uint8_t> buffer) override;

 private:
  CopiedPages copied_;
  std::shared_ptr<HeldMemory> held_;
};

}  // namespace stasis::memory
