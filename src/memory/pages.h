// Where page contents come from and go to.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "image/directory.h"
#include "model/memory.h"

namespace stasis::memory {

/// Bytes of one address space or shared segment, by address (a segment's addresses are its offsets).
class PageSource {
 public:
  virtual ~PageSource() = default;
  /// Fills `buffer` from `address`. Both are multiples of the page size.
  virtual Status read(uint64_t address, std::span<uint8_t> buffer) = 0;
};

/// Pages of a live, stopped task (process_vm_readv; /proc/PID/mem where that is refused).
class ProcessPages : public PageSource {
 public:
  explicit ProcessPages(pid_t host_pid) : host_pid_(host_pid) {}
  Status read(uint64_t address, std::span<uint8_t> buffer) override;

 private:
  pid_t host_pid_;
};

struct PageStoreStats {
  uint64_t pages_written = 0;
  uint64_t zero_pages_skipped = 0;
};

/// Writes pagemap-`suffix`.img and pages-`pages_id`.img. Zero pages are dropped; `runs` ascend.
/// `suffix` is "7" for task 7, "shmem-3" for a segment.
Result<PageStoreStats> write_pages(const image::Directory&, const std::string& suffix, uint32_t pages_id,
                                   std::span<const model::PageRun> runs, PageSource&);

/// One stretch of a pagemap: pages that lie at `file_offset` of pages-`pages_id`.img in `directory` ("" or "parent/…").
struct StoredRun {
  AddressRange range;
  bool shared_with_parent = false;
  bool zero = false;
  std::string directory;
  uint32_t pages_id = 0;
  uint64_t file_offset = 0;
};
/// The pagemap of `suffix`, in_parent entries resolved through the chain of parents; validated: ascending, disjoint,
/// page-aligned, inside the pages file.
Result<std::vector<StoredRun>> read_pagemap(const image::Directory&, const std::string& suffix);

}  // namespace stasis::memory
