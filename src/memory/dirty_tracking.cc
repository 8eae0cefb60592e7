#include "memory/dirty_tracking.h"

#include <algorithm>

#include "base/parallel.h"
#include "memory/increments.h"

namespace stasis::memory {
namespace {

using kernel::page_is_file;
using kernel::page_is_guard;
using kernel::page_is_present;
using kernel::page_is_swapped;
using kernel::page_is_wp_allowed;
using kernel::page_is_written;
using kernel::page_is_zero_frame;

Result<bool> is_written(int pagemap_fd, uint64_t page) {
  const auto found = TRY(kernel::scan_pages(pagemap_fd, {page, page + page_size}, page_is_written, 0, 0, 0));
  return !found.empty();
}

/// Whether a page's protection can be taken away by this tracker, or else be given and taken away. It is without
/// protection afterwards, so that no write is missed that somebody makes from outside meanwhile.
Result<bool> governs(const kernel::Userfaultfd& tracker, int pagemap_fd, uint64_t page) {
  const AddressRange range{page, page + page_size};
  const bool was_written = TRY(is_written(pagemap_fd, page));
  if (!tracker.protect(range, was_written)) return false;
  const bool changed = TRY(is_written(pagemap_fd, page)) != was_written;
  if (was_written) TRY(tracker.protect(range, false));
  return changed;
}

/// A page of its own is neither a file's nor the page of zeros, and no guard: those have an entry, too.
Result<std::vector<kernel::PageScan>> protect_written(int pagemap_fd, const Trackable& part) {
  const uint64_t excluded = page_is_zero_frame | (part.is_anonymous ? 0 : page_is_file);
  constexpr uint64_t in_use = page_is_present | page_is_swapped;
  auto found = kernel::scan_and_protect(pagemap_fd, part.range, page_is_written | excluded | page_is_guard, in_use,
                                        excluded | page_is_guard, page_is_written);
  if (found || found.error().errno_value() != EINVAL) return found;
  // Before 6.15 there are guards, or not even those, but no word for them.
  return kernel::scan_and_protect(pagemap_fd, part.range, page_is_written | excluded, in_use, excluded,
                                  page_is_written);
}

}  // namespace

Result<const Tracker*> Trackers::find(int pagemap_fd, uint64_t page, std::string_view likely_suffix) const {
  std::vector<const Tracker*> candidates;
  for (const auto& tracker : all_) candidates.push_back(tracker.get());
  std::ranges::stable_partition(candidates, [&](const Tracker* one) { return one->suffix == likely_suffix; });
  for (const Tracker* candidate : candidates) {
    if (TRY(governs(candidate->descriptor, pagemap_fd, page))) return candidate;
  }
  return nullptr;
}

void Trackers::rename(const std::vector<std::pair<const Tracker*, std::string>>& used) {
  std::erase_if(all_, [&](const auto& tracker) {
    const auto found = std::ranges::find(used, tracker.get(), [](const auto& one) { return one.first; });
    if (found != used.end()) tracker->suffix = found->second;
    return found == used.end();
  });
}

bool is_unchanged(uint64_t categories, bool is_anonymous) {
  if ((categories & page_is_wp_allowed) == 0 || (categories & page_is_written) != 0) return false;
  return is_anonymous || (categories & page_is_present) != 0;
}

Result<std::vector<AddressRange>> protect_own_pages(const kernel::Userfaultfd& tracker, int pagemap_fd,
                                                    const std::vector<Trackable>& mappings) {
  constexpr uint64_t step = 64ull << 20;  // worth a processor of its own
  std::vector<Trackable> parts;
  std::vector<std::vector<AddressRange>> written;  // of each part
  for (const auto& [mapping, is_anonymous] : mappings) {
    if (TRY(tracker.register_range(mapping)) != kernel::Userfaultfd::Registration::registered) {
      parts.emplace_back();
      written.push_back({mapping});
      continue;
    }
    for (uint64_t at = mapping.begin; at < mapping.end; at += std::min(step, mapping.end - at)) {
      parts.push_back({{at, at + std::min(step, mapping.end - at)}, is_anonymous});
      written.emplace_back();
    }
  }
  constexpr size_t worth_a_thread = 4;
  TRY(parallel_for(
      parts.size(),
      [&](size_t index) -> Status {
        if (parts[index].range.empty()) return {};
        for (const auto& scan : TRY(protect_written(pagemap_fd, parts[index]))) written[index].push_back(scan.range);
        return {};
      },
      worth_a_thread));
  std::vector<AddressRange> all;
  for (const auto& ranges : written) all.insert(all.end(), ranges.begin(), ranges.end());
  return all;
}

}  // namespace stasis::memory
