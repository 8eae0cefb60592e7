// restore --auto-dedup: pages are given back to the file system as soon as all who need them have them, so that images
// and processes together never take more than the pages did, and a piece for each who reads.
//
// What is released cannot be restored again. So nothing that is needed is released before somebody has it; that the
// file system can do it at all is known before any process exists; and a directory of which something is missing says
// so (memory/page_release.h), so that a second restore is refused instead of filling memory with zeros. Pages that
// cannot be released are no reason to give up a restore: they stay, and whoever asks is told why.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "memory/block_file.h"
#include "memory/needed_pages.h"
#include "memory/page_release.h"

namespace stasis::memory {

/// Which readers of one pages file are still to come. Pure.
class PendingReads {
 public:
  /// All that will be read, as offsets of the pages as they were; ranges may overlap: each is read once. `blocks`: of
  /// the file, if it is stored in blocks.
  PendingReads(std::vector<AddressRange> reads, std::span<const Block> blocks);
  /// One of the readers has this. What nobody needs any more: ranges of the file, ascending, disjoint.
  std::vector<AddressRange> done(AddressRange read);

 private:
  /// Of the file: what one reader reads alone, piece by piece, or what is released as a whole when all have it.
  struct Part {
    AddressRange pages, stored;
    bool whole = false;
    uint64_t pending = 0;  ///< bytes that are still to be read, by each reader
  };
  void split(const std::vector<AddressRange>& reads);
  void gather(const std::vector<AddressRange>& reads, std::span<const Block> blocks);

  std::vector<Part> parts_;  // ascending, disjoint
};

/// The pages files of a checkpoint that is being restored.
class ConsumedPages {
 public:
  /// Changes nothing. An error says why pages of one of them could not be released.
  static Result<std::unique_ptr<ConsumedPages>> open(const image::Directory&);

  /// Somebody will read this, whom `done` will tell of; before the first call of that. Of files that are no pages files
  /// nothing is released.
  void expect(const std::string& file, AddressRange pages);
  /// The reader has it. May be called by several threads.
  void done(const std::string& file, AddressRange pages);
  /// All of the checkpoint's pages that are left: nobody has needed them. After the restore.
  void release_rest();

  bool has_begun() const;                ///< something is released, or may be
  std::optional<Error> trouble() const;  ///< why pages have stayed

 private:
  struct File {
    std::vector<AddressRange> reads;
    std::optional<PendingReads> pending;  ///< once they have begun
    std::optional<PageRelease> release;
  };
  explicit ConsumedPages(const image::Directory& directory) : directory_(directory) {}
  Status begin();
  Status release(const std::string& name, AddressRange pages);
  Result<PageRelease*> opened(const std::string& name, File& file) const;

  const image::Directory& directory_;
  NeededPages needed_;
  mutable std::mutex mutex_;
  std::map<std::string, File> files_;
  bool has_begun_ = false;
  std::optional<Error> trouble_;
};

}  // namespace stasis::memory
