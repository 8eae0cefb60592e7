#include "memory/increments.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include <fmt/format.h>

#include "base/parallel.h"
#include "image/names.h"
#include "memory/sent_pages.h"

namespace stasis::memory {
namespace {

constexpr const char* link = "parent";
constexpr size_t longest_chain = 250;  ///< readers follow 256 links (memory/read_pagemap.cc)
constexpr uint64_t chunk_size = 1 << 20;

using FileId = std::pair<dev_t, ino_t>;

Result<FileId> id_of(const image::Directory& directory) {
  struct stat status{};
  if (fstat(directory.fd(), &status) != 0) return fail_errno("fstat", directory.path());
  return FileId{status.st_dev, status.st_ino};
}

std::unexpected<Error> refuse(const std::string& path, std::string cause,
                              std::string advice =
                                  "name the directory of the round before, relative to the images "
                                  "directory, or dump in full") {
  return fail(Error::invalid("use --prev-images-dir", std::move(cause), path).advise(std::move(advice)));
}

/// In a chain all are encrypted, or none is.
Status check_encryption(const image::Directory& images, const image::Directory& parent) {
  const bool ours = images.encryption() != nullptr, theirs = parent.has(image::file_name("manifest"));
  if (theirs && !ours)
    return refuse(parent.path(), "these images are encrypted, and what is added to them has to be as well",
                  "pass --encrypt with --recipient or --key-file, and --identity where that reads them; or dump in "
                  "full, without --prev-images-dir");
  if (ours && !theirs)
    return refuse(parent.path(), "these images are not encrypted: nobody could tell whether they were changed",
                  "leave out --encrypt, or dump in full, without --prev-images-dir");
  return {};
}

/// A chain that is written to while it is read would hold pages of two times.
Status check_chain(const image::Directory& images, const image::Directory& parent, const std::string& path) {
  const auto ours = TRY(id_of(images));
  auto level = TRY(image::Directory::open(parent.path()));
  for (size_t depth = 0;; ++depth) {
    if (TRY(id_of(level)) == ours) return refuse(path, "its chain of parents leads to the images directory itself");
    if (!level.has(link)) return {};
    if (depth == longest_chain) return refuse(path, fmt::format("its chain has more than {} parents", longest_chain));
    level = TRY_IN("follow the parents of " + path, image::Directory::open(level.path() + "/" + link));
  }
}

void append(std::vector<AddressRange>& ranges, AddressRange next) {
  if (next.empty()) return;
  if (!ranges.empty() && ranges.back().end == next.begin)
    ranges.back().end = next.end;
  else
    ranges.push_back(next);
}

std::vector<AddressRange> ranges_of(std::span<const StoredRun> stored) {
  std::vector<AddressRange> ranges;
  for (const StoredRun& run : stored) {
    if (run.in_file()) append(ranges, run.range);
  }
  return ranges;
}

/// Which pages of a chunk are the same here and there.
Result<std::vector<AddressRange>> equal_pages(AddressRange chunk, PageSource& ours, PageSource& theirs) {
  Bytes here(chunk.size()), there(chunk.size());
  TRY(ours.read(chunk.begin, here));
  TRY(theirs.read(chunk.begin, there));
  std::vector<AddressRange> equal;
  for (uint64_t at = 0; at < chunk.size(); at += page_size) {
    if (std::memcmp(here.data() + at, there.data() + at, page_size) == 0)
      append(equal, {chunk.begin + at, chunk.begin + at + page_size});
  }
  return equal;
}

/// Encrypted images have encrypted parents, which the same keys read.
Result<image::Directory> open_parent(const image::Directory& images, const std::string& path) {
  return TRY_IN("open the parent images",
                images.encryption() ? images.open_related(path) : image::Directory::open(path));
}

/// Or they are at a page server.
bool has_pages(const image::Directory& directory, const std::string& suffix) {
  return directory.has(image::file_name("pagemap-" + suffix));
}

}  // namespace

Result<std::unique_ptr<ParentImages>> ParentImages::open(const image::Directory& images, const std::string& previous) {
  const auto path = previous.starts_with('/') ? previous : images.path() + "/" + previous;
  const auto found = image::Directory::open(path);
  if (!found) return refuse(path, std::strerror(found.error().errno_value()));
  if (!found->has("inventory.img"))
    return refuse(path, "there is no inventory.img: no checkpoint, or one that was never completed");
  TRY(check_encryption(images, *found));
  auto opened = TRY(open_parent(images, path));
  TRY(check_chain(images, opened, path));
  return std::unique_ptr<ParentImages>(new ParentImages(std::move(opened)));
}

Result<std::unique_ptr<ParentImages>> ParentImages::linked(const image::Directory& images) {
  struct stat status{};
  if (fstatat(images.fd(), link, &status, AT_SYMLINK_NOFOLLOW) != 0) return nullptr;
  auto directory = TRY(open_parent(images, images.path() + "/" + link));
  return std::unique_ptr<ParentImages>(new ParentImages(std::move(directory)));
}

Result<const std::vector<StoredRun>*> ParentImages::stored(const std::string& suffix) {
  const std::lock_guard lock(mutex_);
  const auto [known, fresh] = stored_.try_emplace(suffix);
  if (fresh && has_pages(directory_, suffix))
    known->second = TRY_IN("read the parent images", read_pagemap(directory_, suffix));
  else if (fresh && directory_.has(image::file_name(sent_prefix + suffix)))
    known->second = TRY_IN("read the parent images", read_sent_pagemap(directory_, suffix));
  return known->second ? &*known->second : nullptr;
}

Status ParentImages::read_all() {
  for (const std::string& suffix : TRY(list_pagemaps(directory_))) TRY(stored(suffix));
  for (const std::string& suffix : TRY(list_sent_pagemaps(directory_))) TRY(stored(suffix));
  return {};
}

Status link_parent(const image::Directory& images, const std::string& previous) {
  if (unlinkat(images.fd(), link, 0) != 0 && errno != ENOENT)
    return fail_errno("remove the link to other parents", link);
  if (previous.empty()) return {};
  if (symlinkat(previous.c_str(), images.fd(), link) != 0) return fail_errno("link the parent images", previous);
  return {};
}

std::vector<AddressRange> intersect(std::span<const AddressRange> a, std::span<const AddressRange> b) {
  std::vector<AddressRange> common;
  for (auto one = a.begin(), other = b.begin(); one != a.end() && other != b.end();) {
    append(common, {std::max(one->begin, other->begin), std::min(one->end, other->end)});
    one->end < other->end ? ++one : ++other;
  }
  return common;
}

std::vector<AddressRange> subtract(std::span<const AddressRange> from, std::span<const AddressRange> taken_away) {
  std::vector<AddressRange> left;
  auto next = taken_away.begin();
  for (AddressRange range : from) {
    while (next != taken_away.end() && next->end <= range.begin) ++next;
    for (auto one = next; one != taken_away.end() && one->begin < range.end; ++one) {
      append(left, {range.begin, std::max(range.begin, one->begin)});
      range.begin = std::min(range.end, one->end);
    }
    append(left, range);
  }
  return left;
}

Increment split(std::span<const model::PageRun> runs, std::span<const AddressRange> held) {
  Increment result;
  const auto add = [](std::vector<model::PageRun>& to, model::PageRun run, uint64_t begin, uint64_t end) {
    if (begin >= end) return;
    run.range = {begin, end};
    to.push_back(run);
  };
  auto next = held.begin();
  for (const model::PageRun& run : runs) {
    while (next != held.end() && next->end <= run.range.begin) ++next;
    uint64_t at = run.range.begin;
    for (auto one = next; one != held.end() && one->begin < run.range.end; ++one) {
      const uint64_t begin = std::max(one->begin, run.range.begin), end = std::min(one->end, run.range.end);
      add(result.changed, run, at, begin);
      add(result.in_parent, run, begin, end);
      at = end;
    }
    add(result.changed, run, at, run.range.end);
  }
  return result;
}

Increment increment_of(std::span<const model::PageRun> runs, std::span<const AddressRange> unchanged,
                       std::span<const StoredRun> stored) {
  return split(runs, intersect(unchanged, ranges_of(stored)));
}

Result<Increment> compare_with(ParentImages& parent, const std::string& suffix, std::span<const model::PageRun> runs,
                               PageSource& source) {
  const auto* stored = TRY(parent.stored(suffix));
  std::vector<AddressRange> ours, chunks;
  for (const model::PageRun& run : runs) append(ours, run.range);
  if (stored != nullptr && has_pages(parent.directory(), suffix)) {
    for (const AddressRange& common : intersect(ours, ranges_of(*stored))) {
      for (uint64_t at = common.begin; at < common.end; at += chunk_size)
        chunks.push_back({at, std::min(at + chunk_size, common.end)});
    }
  }
  std::vector<AddressRange> equal;
  if (!chunks.empty()) {
    const auto theirs = TRY_IN("read the parent images", ImagePages::open(parent.directory(), suffix));
    std::vector<std::vector<AddressRange>> found(chunks.size());
    TRY(parallel_for(chunks.size(), [&](size_t index) -> Status {
      found[index] = TRY(equal_pages(chunks[index], source, *theirs));
      return {};
    }));
    for (const auto& ranges : found) {
      for (const AddressRange& range : ranges) append(equal, range);
    }
  }
  return split(runs, equal);
}

Result<PageStoreStats> write_compared(const image::Directory& directory, const std::string& suffix, uint32_t pages_id,
                                      std::span<const model::PageRun> runs, PageSource& source) {
  const auto parent = TRY(ParentImages::linked(directory));
  if (!parent) return write_pages(directory, suffix, pages_id, runs, source);
  const auto increment = TRY(compare_with(*parent, suffix, runs, source));
  return write_pages(directory, suffix, pages_id, increment.changed, source, increment.in_parent);
}

}  // namespace stasis::memory
