#include "memory/dedup.h"

#include <algorithm>

#include "image/names.h"
#include "memory/increments.h"
#include "memory/needed_pages.h"
#include "memory/page_release.h"
#include "memory/sent_pages.h"

namespace stasis::memory {
namespace {

Status release_all_but(PageRelease& file, const std::vector<AddressRange>& kept, DedupStats& stats) {
  const uint64_t before = TRY(file.bytes_used());
  uint64_t at = 0;
  for (const AddressRange& range : kept) {
    TRY(file.release({at, range.begin}));
    at = range.end;
  }
  TRY(file.release({at, file.size()}));
  const uint64_t after = TRY(file.bytes_used());
  stats.bytes += before - std::min(before, after);
  ++stats.files;
  return {};
}

/// Whether a parent, at `prefix`, needs pages that the newest checkpoint does not.
Result<bool> loses_pages(const image::Directory& parent, const std::string& prefix, const NeededPages& needed) {
  for (const auto& [file, ranges] : TRY(needed_pages(parent))) {
    const auto kept = needed.find(prefix + file);
    if (kept == needed.end() || !subtract(ranges, kept->second).empty()) return true;
  }
  return false;
}

}  // namespace

Result<DedupStats> release_superseded(const image::Directory& directory) {
  for (const std::string& suffix : TRY(list_sent_pagemaps(directory))) {
    if (directory.has(image::file_name("pagemap-" + suffix))) continue;
    return fail(Error::conflict("release superseded pages",
                                "its pages are at a page server: what they need is not known", directory.path())
                    .advise("do it where the pages are"));
  }
  const NeededPages needed = TRY(needed_pages(directory));
  DedupStats stats;
  std::string prefix;
  for (auto level = TRY(directory.holding("")); level.has("parent");) {
    prefix += "parent/";
    level = TRY(directory.holding(prefix));
    if (!level.has(released_marker) && TRY(loses_pages(level, prefix, needed))) TRY(mark_released(level));
    for (const std::string& file : TRY(level.list())) {
      const auto parsed = image::parse_name(file);
      if (!parsed || parsed->kind->pattern != "pages-{}") continue;
      const std::string name = prefix + file;
      const auto found = needed.find(name);
      const auto kept =
          found == needed.end() ? std::vector<AddressRange>{} : TRY(stored_ranges(directory, name, found->second));
      auto release = TRY(PageRelease::open(directory, name));
      TRY(release_all_but(release, kept, stats));
    }
  }
  return stats;
}

}  // namespace stasis::memory
