// What a dump need not store because the images of the round before hold it.
//
// Private memory is known by its page tables: a page that is still write-protected since that round holds what was
// stored then, at the same address (memory/dirty_tracking.h). Shared memory is not: it may have been written through a
// mapping that came and went since, by another process, or by write(2). It is compared with what is stored.
//
// Either way the pagemap lists every page that is not zero, here or in the parent images; what it does not list is
// zeros, whatever the parent images say. Only what their pagemaps list is referred to, as CRIU demands.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "image/directory.h"
#include "memory/pages.h"
#include "model/memory.h"

namespace stasis::memory {

/// The images that a directory's link "parent" leads to. May be used by several threads.
class ParentImages {
 public:
  /// `previous` is --prev-images-dir: relative to the directory, as CRIU has it. Checked: it is a checkpoint or the
  /// images of a pre-dump, and no part of its chain is the directory itself, which is about to be written.
  static Result<std::unique_ptr<ParentImages>> open(const image::Directory& images, const std::string& previous);
  /// Through the link; nullptr if there is none.
  static Result<std::unique_ptr<ParentImages>> linked(const image::Directory& images);

  const image::Directory& directory() const { return directory_; }
  /// What their pagemap of this name lists, resolved; nullptr if there is none. Read once.
  Result<const std::vector<StoredRun>*> stored(const std::string& suffix);
  /// All of them, while nobody waits.
  Status read_all();

 private:
  explicit ParentImages(image::Directory directory) : directory_(std::move(directory)) {}
  image::Directory directory_;
  std::mutex mutex_;
  std::map<std::string, std::optional<std::vector<StoredRun>>> stored_;
};

/// Makes the link, or removes the one of an earlier dump (`previous` empty).
Status link_parent(const image::Directory& images, const std::string& previous);

// -- ascending, disjoint ranges; pure

std::vector<AddressRange> intersect(std::span<const AddressRange>, std::span<const AddressRange>);
std::vector<AddressRange> subtract(std::span<const AddressRange>, std::span<const AddressRange> taken_away);

/// Runs to be stored, and runs to be referred to.
struct Increment {
  std::vector<model::PageRun> changed, in_parent;
};
/// Those outside of the ranges, and those inside; pure.
Increment split(std::span<const model::PageRun> runs, std::span<const AddressRange> ranges);
/// Of private memory; pure. `unchanged`: since the round before.
Increment increment_of(std::span<const model::PageRun> runs, std::span<const AddressRange> unchanged,
                       std::span<const StoredRun> stored);
/// Of shared memory: what is stored with the same content.
Result<Increment> compare_with(ParentImages&, const std::string& suffix, std::span<const model::PageRun> runs,
                               PageSource&);
/// write_pages of shared memory, compared with what the directory's link "parent" leads to, if it has one.
Result<PageStoreStats> write_compared(const image::Directory&, const std::string& suffix, uint32_t pages_id,
                                      std::span<const model::PageRun> runs, PageSource&);

}  // namespace stasis::memory
