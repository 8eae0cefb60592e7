#include "memory/consumed_pages.h"

#include <algorithm>
#include <set>

#include "base/ranges.h"
#include "memory/dedup.h"

namespace stasis::memory {
namespace {

AddressRange whole_pages(AddressRange range) {
  return {range.begin / page_size * page_size, (range.end + page_size - 1) / page_size * page_size};
}

AddressRange common(AddressRange a, AddressRange b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

}  // namespace

PendingReads::PendingReads(std::vector<AddressRange> reads, std::span<const Block> blocks) {
  for (AddressRange& read : reads) read = whole_pages(read);
  std::erase_if(reads, [](const AddressRange& read) { return read.empty(); });
  if (blocks.empty())
    split(reads);
  else
    gather(reads, blocks);
}

/// Pages as they are: at each begin and end of a read, with as many readers as have begun and not ended there.
void PendingReads::split(const std::vector<AddressRange>& reads) {
  std::map<uint64_t, int64_t> changes;
  for (const AddressRange& read : reads) ++changes[read.begin], --changes[read.end];
  uint64_t readers = 0, at = 0;
  for (const auto& [offset, change] : changes) {
    if (readers > 0) parts_.push_back({{at, offset}, {at, offset}, readers > 1, readers * (offset - at)});
    readers += static_cast<uint64_t>(change);
    at = offset;
  }
}

void PendingReads::gather(const std::vector<AddressRange>& reads, std::span<const Block> blocks) {
  std::map<size_t, uint64_t> pending;
  for (const AddressRange& read : reads) {
    auto block = std::ranges::upper_bound(blocks, read.begin, {}, [](const Block& b) { return b.range().end; });
    for (; block != blocks.end() && block->range().begin < read.end; ++block)
      pending[static_cast<size_t>(block - blocks.begin())] += common(read, block->range()).size();
  }
  for (const auto& [index, bytes] : pending)
    parts_.push_back({blocks[index].range(), blocks[index].stored(), true, bytes});
}

std::vector<AddressRange> PendingReads::done(AddressRange read) {
  read = whole_pages(read);
  std::vector<AddressRange> free;
  auto part = std::ranges::upper_bound(parts_, read.begin, {}, [](const Part& p) { return p.pages.end; });
  for (; part != parts_.end() && part->pages.begin < read.end; ++part) {
    const AddressRange here = common(read, part->pages);
    part->pending -= std::min(part->pending, here.size());
    if (!part->whole)
      free.push_back(here);
    else if (part->pending == 0)
      free.push_back(part->stored);
  }
  merge(free);  // blocks lie in any order, and each range is a system call
  return free;
}

Result<std::unique_ptr<ConsumedPages>> ConsumedPages::open(const image::Directory& directory) {
  std::unique_ptr<ConsumedPages> pages(new ConsumedPages(directory));
  pages->needed_ = TRY(needed_pages(directory));
  // Each is opened again when its first page is released: descriptors that are open now would be in the way of those of
  // the processes to come.
  for (const auto& [name, ranges] : pages->needed_) {
    const auto file = TRY(PageRelease::open(directory, name));
    TRY(file.probe());
    pages->files_.try_emplace(name);
  }
  return pages;
}

void ConsumedPages::expect(const std::string& file, AddressRange pages) {
  if (const auto found = files_.find(file); found != files_.end()) found->second.reads.push_back(pages);
}

void ConsumedPages::done(const std::string& file, AddressRange pages) {
  const std::lock_guard lock(mutex_);
  if (!files_.contains(file) || trouble_) return;
  if (auto released = release(file, pages); !released) trouble_ = std::move(released).error();
}

Status ConsumedPages::release(const std::string& name, AddressRange pages) {
  File& file = files_.at(name);
  auto& release = *TRY(opened(name, file));
  if (!file.pending) {
    const auto blocks = BlockFile::is_one(directory_, name) ? TRY(BlockFile::open(directory_, name)) : nullptr;
    file.pending.emplace(std::move(file.reads),
                         blocks ? std::span<const Block>(blocks->blocks()) : std::span<const Block>());
  }
  for (const AddressRange& range : file.pending->done(pages)) {
    TRY(begin());
    TRY(release.release(range));
  }
  return {};
}

/// Whoever leads to the pages needs them as well: pagemaps refer to nothing that the parent's pagemap does not list.
Status ConsumedPages::begin() {
  if (has_begun_) return {};
  // The parents are no checkpoints any more from here on: what only they needed makes room for the processes first.
  if (directory_.has("parent")) TRY(release_superseded(directory_));
  std::set<std::string> levels;
  for (const auto& [name, ranges] : needed_) {
    levels.insert("");
    for (size_t slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1))
      levels.insert(name.substr(0, slash + 1));
  }
  for (const std::string& level : levels) TRY(mark_released(TRY(directory_.holding(level))));
  has_begun_ = true;
  return {};
}

Result<PageRelease*> ConsumedPages::opened(const std::string& name, File& file) const {
  if (!file.release) file.release = TRY(PageRelease::open(directory_, name));
  return &*file.release;
}

void ConsumedPages::release_rest() {
  const std::lock_guard lock(mutex_);
  const auto rest = [this](const std::string& name, const std::vector<AddressRange>& needed) -> Status {
    TRY(begin());
    auto& release = *TRY(opened(name, files_.at(name)));
    for (const AddressRange& range : TRY(stored_ranges(directory_, name, needed))) TRY(release.release(range));
    return {};
  };
  for (const auto& [name, needed] : needed_) {
    if (auto released = rest(name, needed); !released && !trouble_) trouble_ = std::move(released).error();
  }
}

bool ConsumedPages::has_begun() const {
  const std::lock_guard lock(mutex_);
  return has_begun_;
}

std::optional<Error> ConsumedPages::trouble() const {
  const std::lock_guard lock(mutex_);
  return trouble_;
}

}  // namespace stasis::memory
