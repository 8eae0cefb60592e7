#include "memory/dedup.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>

#include <fmt/format.h>

#include "image/names.h"
#include "memory/block_file.h"
#include "memory/pages.h"
#include "memory/sent_pages.h"

namespace stasis::memory {
namespace {

/// Ranges of pages, by pages file ("parent/pages-1.img"), as offsets of the pages as they were.
using Needed = std::map<std::string, std::vector<AddressRange>>;

Result<Needed> needed_of_parents(const image::Directory& directory) {
  Needed needed;
  for (const std::string& suffix : TRY(list_pagemaps(directory))) {
    for (const StoredRun& run : TRY(read_pagemap(directory, suffix))) {
      if (!run.in_file() || run.directory.empty()) continue;
      needed[run.directory + image::file_name("pages-{}", run.pages_id)].push_back(
          {run.file_offset, run.file_offset + run.range.size()});
    }
  }
  for (auto& [file, ranges] : needed) std::ranges::sort(ranges);
  return needed;
}

bool touches(const std::vector<AddressRange>& ranges, const AddressRange& one) {
  const auto next = std::ranges::upper_bound(ranges, one.begin, {}, &AddressRange::end);
  return next != ranges.end() && next->begin < one.end;
}

/// Where what is needed lies in the file: whole blocks of it, if it is stored in blocks. Ascending.
Result<std::vector<AddressRange>> stored_ranges(const image::Directory& directory, const std::string& file,
                                                const std::vector<AddressRange>& needed) {
  if (!BlockFile::is_one(directory, file)) return needed;
  std::vector<AddressRange> stored;
  const auto blocks = TRY(BlockFile::open(directory, file));
  for (const Block& block : blocks->blocks()) {
    const uint64_t begin = block.first_page * page_size;
    if (touches(needed, {begin, begin + block.pages * page_size}))
      stored.push_back({block.offset, block.offset + block.length});
  }
  std::ranges::sort(stored);
  return stored;
}

class Puncher {
 public:
  Puncher(int fd, const std::string& name, DedupStats& stats) : fd_(fd), name_(name), stats_(stats) {}

  /// Adjacent pages go in one call.
  Status release(uint64_t begin, uint64_t end) {
    if (begin >= end) return {};
    if (fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(begin),
                  static_cast<off_t>(end - begin)) < 0)
      return fail_errno("release superseded pages", name_);
    return {};
  }

  Status all_but(const std::vector<AddressRange>& kept) {
    struct stat before{}, after{};
    if (fstat(fd_, &before) < 0) return fail_errno("fstat", name_);
    uint64_t at = 0;
    for (const AddressRange& range : kept) {
      TRY(release(at, range.begin));
      at = std::max(at, range.end);
    }
    TRY(release(at, static_cast<uint64_t>(before.st_size)));
    if (fstat(fd_, &after) < 0) return fail_errno("fstat", name_);
    constexpr uint64_t unit = 512;  // of st_blocks, whatever the file system
    stats_.bytes += static_cast<uint64_t>(std::max<blkcnt_t>(before.st_blocks - after.st_blocks, 0)) * unit;
    return {};
  }

 private:
  int fd_;
  const std::string& name_;
  DedupStats& stats_;
};

}  // namespace

Result<DedupStats> release_superseded(const image::Directory& directory) {
  for (const std::string& suffix : TRY(list_sent_pagemaps(directory))) {
    if (directory.has(image::file_name("pagemap-" + suffix))) continue;
    return fail(Error::conflict("release superseded pages",
                                "its pages are at a page server: what they need is not known", directory.path())
                    .advise("do it where the pages are"));
  }
  const Needed needed = TRY(needed_of_parents(directory));
  DedupStats stats;
  std::string prefix;
  for (auto level = TRY(directory.holding("")); level.has("parent");) {
    prefix += "parent/";
    level = TRY(directory.holding(prefix));
    if (level.encryption()) break;
    for (const std::string& file : TRY(level.list())) {
      const auto parsed = image::parse_name(file);
      if (!parsed || parsed->kind->pattern != "pages-{}") continue;
      const std::string name = prefix + file;
      const auto found = needed.find(name);
      const auto kept =
          found == needed.end() ? std::vector<AddressRange>{} : TRY(stored_ranges(directory, name, found->second));
      const UniqueFd fd(openat(level.fd(), file.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
      if (!fd.valid()) return fail_errno("open image", name);
      TRY(Puncher(fd.get(), name, stats).all_but(kept));
      ++stats.files;
    }
  }
  return stats;
}

}  // namespace stasis::memory
