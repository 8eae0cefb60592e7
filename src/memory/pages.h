// Where page contents come from and go to.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "base/unique_fd.h"
#include "image/directory.h"
#include "model/memory.h"

namespace stasis::memory {

/// Bytes of one address space or shared segment, by address (a segment's addresses are its offsets).
/// All reads may come from several threads at once.
class PageSource {
 public:
  virtual ~PageSource() = default;
  /// Fills `buffer` from `address`. Both are multiples of the page size.
  virtual Status read(uint64_t address, std::span<uint8_t> buffer) = 0;
  /// Fills `buffer` with the bytes of all ranges, one after the other.
  virtual Status read_ranges(std::span<const AddressRange> ranges, std::span<uint8_t> buffer);
};

/// Pages of a live, stopped task (process_vm_readv; /proc/PID/mem where that is refused: pages that the task itself may
/// not read). ErrorCode::gone when the task has died.
class ProcessPages : public PageSource {
 public:
  explicit ProcessPages(pid_t host_pid) : host_pid_(host_pid) {}
  Status read(uint64_t address, std::span<uint8_t> buffer) override;
  Status read_ranges(std::span<const AddressRange> ranges, std::span<uint8_t> buffer) override;

 private:
  struct Part {
    AddressRange range;
    bool shared = false;  ///< copy-on-write with another process
  };
  Result<std::vector<Part>> split_by_sharing(AddressRange range);
  Status read_exclusive(std::span<const AddressRange> ranges, std::span<uint8_t> buffer);
  Status read_forced(uint64_t address, std::span<uint8_t> buffer);

  pid_t host_pid_;
  std::mutex opening_;
  UniqueFd pagemap_;
  UniqueFd mem_;  ///< /proc/PID/mem, opened on first need
};

/// A file as memory: offset is address. Beyond its end there are zeros.
class FilePages : public PageSource {
 public:
  /// `name` is for messages. The descriptor must outlive the source.
  FilePages(int fd, std::string name) : fd_(fd), name_(std::move(name)) {}
  Status read(uint64_t address, std::span<uint8_t> buffer) override;

 private:
  int fd_;
  std::string name_;
};

struct PageStoreStats {
  uint64_t pages_written = 0;
  uint64_t zero_pages_skipped = 0;
};

/// Bytes of all of them.
uint64_t total_size(std::span<const AddressRange>);
uint64_t total_size(std::span<const model::PageRun>);

/// Runs of this size together are copied by two threads: less is copied before the second has started.
inline constexpr uint64_t parallel_copy_from = 2ull << 20;

/// Writes pagemap-`suffix`.img and pages-`pages_id`.img, in blocks where the directory says so (memory/block_file.h).
/// Zero pages are dropped; `runs` ascend.
/// `suffix` is "7" for task 7, "shmem-3" for a segment. Runs beside these, ascending, are only told of: those whose
/// pages the parent images hold, and those whose pages will be given to whoever asks for them (StoredRun::elsewhere).
Result<PageStoreStats> write_pages(const image::Directory&, const std::string& suffix, uint32_t pages_id,
                                   std::span<const model::PageRun> runs, PageSource&,
                                   std::span<const model::PageRun> in_parent = {},
                                   std::span<const model::PageRun> elsewhere = {});

/// One stretch of a pagemap: pages that lie at `file_offset` of pages-`pages_id`.img in `directory` ("" or "parent/…").
struct StoredRun {
  AddressRange range;
  bool shared_with_parent = false;
  bool zero = false;
  /// They are in no image: `dump --lazy-pages` gives them to `lazy-pages --page-server`. Private memory only.
  bool elsewhere = false;
  std::string directory;
  uint32_t pages_id = 0;
  uint64_t file_offset = 0;
  bool in_blocks = false;  ///< the pages file is stored in blocks: the offset counts the pages as they were
  /// Only stasis can read them for a process that is restored: they have to be decoded, or released afterwards.
  bool through_stasis = false;

  bool in_file() const { return !zero && !elsewhere; }
};
/// The pagemap of `suffix`, in_parent entries resolved through the chain of parents; validated: ascending, disjoint,
/// page-aligned, inside the pages file. Only the directory itself may leave pages out.
Result<std::vector<StoredRun>> read_pagemap(const image::Directory&, const std::string& suffix);
/// The suffixes of all pagemaps in the directory.
Result<std::vector<std::string>> list_pagemaps(const image::Directory&);

/// Stored pages as memory; what is not stored reads as zeros, but to read what is elsewhere is an error. Keeps the
/// directory's files open while it lives.
class ImagePages : public PageSource {
 public:
  static Result<std::unique_ptr<ImagePages>> open(const image::Directory&, const std::string& suffix);
  ~ImagePages() override;
  Status read(uint64_t address, std::span<uint8_t> buffer) override;
  const std::vector<StoredRun>& runs() const { return runs_; }

 private:
  struct File;
  ImagePages();
  std::vector<StoredRun> runs_;
  std::map<std::pair<std::string, uint32_t>, File> files_;
};

}  // namespace stasis::memory
