#include "memory/needed_pages.h"

#include <algorithm>

#include "base/ranges.h"
#include "image/names.h"
#include "memory/pages.h"

namespace stasis::memory {

Result<NeededPages> needed_pages(const image::Directory& directory) {
  NeededPages needed;
  for (const std::string& suffix : TRY(list_pagemaps(directory))) {
    for (const StoredRun& run : TRY(read_pagemap(directory, suffix))) {
      if (!run.in_file()) continue;
      needed[run.directory + image::file_name("pages-{}", run.pages_id)].push_back(
          {run.file_offset, run.file_offset + run.range.size()});
    }
  }
  for (auto& [file, ranges] : needed) merge(ranges);
  return needed;
}

bool is_needed(const std::vector<AddressRange>& needed, const Block& block) {
  const AddressRange pages = block.range();
  const auto next = std::ranges::upper_bound(needed, pages.begin, {}, &AddressRange::end);
  return next != needed.end() && next->begin < pages.end;
}

Result<std::vector<AddressRange>> stored_ranges(const image::Directory& directory, const std::string& file,
                                                const std::vector<AddressRange>& needed) {
  if (!BlockFile::is_one(directory, file)) return needed;
  std::vector<AddressRange> stored;
  const auto blocks = TRY(BlockFile::open(directory, file));
  for (const Block& block : blocks->blocks())
    if (is_needed(needed, block)) stored.push_back(block.stored());
  merge(stored);
  return stored;
}

}  // namespace stasis::memory
