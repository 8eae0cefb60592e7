#include "plan/verify_space.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>

namespace stasis::plan {
namespace {

constexpr uint64_t task_size = 0x7ffffffff000;  // TASK_SIZE_MAX with four levels of page tables

/// Removes the range from disjoint entries keyed by their begin; `end_of` gives a reference to an entry's end. What
/// sticks out on either side stays.
template <typename Entries, typename EndOf>
void cut(Entries& entries, AddressRange range, EndOf end_of) {
  auto at = entries.upper_bound(range.begin);
  if (at != entries.begin()) --at;
  while (at != entries.end() && at->first < range.end) {
    const uint64_t begin = at->first;
    auto entry = at->second;
    const uint64_t end = end_of(entry);
    if (end <= range.begin) {
      ++at;
      continue;
    }
    at = entries.erase(at);
    if (end > range.end) entries[range.end] = entry;
    if (begin < range.begin) {
      end_of(entry) = range.begin;
      entries[begin] = entry;
    }
  }
}

/// vDSO, vvar and vsyscall are the kernel's own: they are placed when the program has run. So are rings of AIO
/// contexts, and queues of io_urings.
bool placed_by_kernel(const model::Mapping& mapping) {
  return mapping.backing == model::Backing::vdso || mapping.backing == model::Backing::vvar ||
         mapping.backing == model::Backing::vsyscall || mapping.backing == model::Backing::aio_ring ||
         mapping.backing == model::Backing::io_uring;
}
bool is_shared(const model::Mapping& mapping) {
  return mapping.backing == model::Backing::shared_anonymous || mapping.backing == model::Backing::shared_file;
}

Broken check_pages(uint64_t begin, uint64_t length) {
  const bool whole = begin % page_size == 0 && length % page_size == 0;
  if (whole && length != 0 && length <= task_size && begin <= task_size - length) return {};
  return fmt::format("the range {:#x}+{:#x} is not one of pages of a task (EINVAL)", begin, length);
}

}  // namespace

Broken SpaceModel::map(uint64_t begin, uint64_t length, uint32_t protection, bool shared, uint32_t flags) {
  if (auto broken = check_pages(begin, length)) return broken;
  const uint64_t end = begin + length;
  const auto above = areas_.lower_bound(begin);
  const bool overlaps = (above != areas_.end() && above->first < end) ||
                        (above != areas_.begin() && std::prev(above)->second.end > begin);
  if (overlaps) return fmt::format("something is mapped at {:#x} already (EEXIST)", begin);
  areas_[begin] = {.end = end, .protection = protection, .shared = shared, .never_huge = (flags & MAP_STACK) != 0};
  forget_filled({begin, end});
  return {};
}

Broken SpaceModel::attach(uint64_t begin, uint64_t length, uint32_t protection, ObjectId segment) {
  if (auto broken = map(begin, length, protection, true)) return broken;
  auto& area = areas_.at(begin);
  area.segment = segment, area.origin = begin, area.read_only = (protection & PROT_WRITE) == 0;
  return {};
}

Broken SpaceModel::move(uint64_t from, uint64_t length, uint64_t to) {
  const auto found = areas_.find(from);
  if (found == areas_.end() || found->second.end != from + length)
    return fmt::format("no mapping {:#x}+{:#x} (EFAULT)", from, length);
  Area area = found->second;
  if (auto broken = check_pages(to, length)) return broken;
  if (AddressRange{from, area.end}.overlaps({to, to + length}))
    return fmt::format("{:#x}+{:#x} overlaps the place that it comes from (EINVAL)", to, length);
  if (auto broken = spares_owed({from, area.end})) return broken;
  Ranges moved;
  for (const auto& [begin, end] : filled_) {
    if (begin < area.end && end > from) moved[std::max(begin, from) - from + to] = std::min(end, area.end) - from + to;
  }
  areas_.erase(found);
  forget_filled({from, area.end});
  if (auto broken = map(to, length, area.protection, area.shared)) return broken;
  area.end = to + length;
  if (area.segment.value != 0) area.origin += to - from;
  areas_[to] = area;
  filled_.merge(moved);
  return {};
}

Broken SpaceModel::unmap(uint64_t begin, uint64_t length) {
  if (auto broken = check_pages(begin, length)) return broken;
  const AddressRange range{begin, begin + length};
  if (auto broken = spares_owed(range)) return broken;
  cut(areas_, range, [](auto& area) -> auto& { return area.end; });
  forget_filled(range);
  return {};
}

Broken SpaceModel::protect(uint64_t begin, uint64_t length, uint32_t protection) {
  if (auto broken = check_pages(begin, length)) return broken;
  const AddressRange range{begin, begin + length};
  if (const uint64_t covered = covered_until(range, 0); covered < range.end)
    return fmt::format("there is a hole at {:#x} (ENOMEM)", covered);
  std::vector<std::pair<uint64_t, Area>> changed;  // those of one kind become one
  for (auto at = std::prev(areas_.upper_bound(begin)); at != areas_.end() && at->first < range.end; ++at) {
    Area area = at->second;
    if (area.read_only && (protection & PROT_WRITE) != 0)
      return fmt::format("the segment at {:#x} is attached for reading only (EACCES)", at->first);
    area.end = std::min(area.end, range.end), area.protection = protection;
    if (!changed.empty() && changed.back().second.is_like(area))
      changed.back().second.end = area.end;
    else
      changed.emplace_back(std::max(at->first, begin), area);
  }
  cut(areas_, range, [](auto& area) -> auto& { return area.end; });
  areas_.insert(changed.begin(), changed.end());
  return {};
}

Broken SpaceModel::fill(AddressRange range) {
  if (range.begin % page_size != 0 || range.end % page_size != 0)
    return fmt::format("{:#x}-{:#x} are no whole pages", range.begin, range.end);
  if (range.empty()) return fmt::format("the range {:#x}-{:#x} is empty (EINVAL)", range.begin, range.end);
  if (const uint64_t covered = covered_until(range, PROT_WRITE); covered < range.end)
    return fmt::format("the page at {:#x} is not writable memory (EFAULT)", covered);
  if (auto broken = spares_owed(range)) return broken;
  forget_filled(range);  // so that entries stay disjoint
  filled_[range.begin] = range.end;
  return {};
}

Broken SpaceModel::owe(AddressRange range) {
  if (auto broken = check_pages(range.begin, range.size())) return broken;
  if (const uint64_t covered = covered_until(range, 0); covered < range.end)
    return fmt::format("nothing is mapped at {:#x} (EINVAL)", covered);
  if (const uint64_t filled = first_filled(range); filled < range.end)
    return fmt::format("the page at {:#x} is there already (EEXIST)", filled);
  filled_[range.begin] = range.end;
  owed_[range.begin] = range.end;
  return {};
}

Broken SpaceModel::spares_owed(AddressRange range) const {
  auto at = owed_.upper_bound(range.begin);
  if (at != owed_.begin() && std::prev(at)->second > range.begin) --at;
  if (at == owed_.end() || at->first >= range.end) return {};
  return fmt::format("the page at {:#x} is still to come", std::max(at->first, range.begin));
}

Broken SpaceModel::drop(uint64_t begin, uint64_t length) {
  if (auto broken = check_pages(begin, length)) return broken;
  const AddressRange range{begin, begin + length};
  if (const uint64_t covered = covered_until(range, 0); covered < range.end)
    return fmt::format("there is a hole at {:#x} (ENOMEM)", covered);
  if (auto broken = spares_owed(range)) return broken;
  forget_filled(range);
  return {};
}

uint64_t SpaceModel::covered_until(AddressRange range, uint32_t protection) const {
  uint64_t covered = range.begin;
  auto at = areas_.upper_bound(covered);
  if (at != areas_.begin()) --at;
  for (; at != areas_.end() && at->first <= covered && covered < range.end; ++at) {
    if (at->second.end > covered && (at->second.protection & protection) != protection) break;
    covered = std::max(covered, at->second.end);
  }
  return std::min(covered, range.end);
}

uint64_t SpaceModel::filled_until(AddressRange range) const {
  uint64_t covered = range.begin;
  auto at = filled_.upper_bound(covered);
  if (at != filled_.begin()) --at;
  for (; at != filled_.end() && at->first <= covered && covered < range.end; ++at)
    covered = std::max(covered, at->second);
  return std::min(covered, range.end);
}

uint64_t SpaceModel::first_filled(AddressRange range) const {
  auto at = filled_.upper_bound(range.begin);
  if (at != filled_.begin() && std::prev(at)->second > range.begin) return range.begin;
  return at == filled_.end() ? range.end : std::min(at->first, range.end);
}

void SpaceModel::forget_filled(AddressRange range) {
  cut(filled_, range, [](auto& end) -> auto& { return end; });
}

Broken SpaceModel::compare_attached(const model::Mapping& mapping, const Area& area, bool system_v) const {
  if (system_v != (area.segment.value != 0))
    return fmt::format("{:#x} is {}attached memory", mapping.range.begin, system_v ? "no " : "");
  if (!system_v) return {};
  if (area.segment != mapping.shared_memory || area.origin != mapping.range.begin - mapping.offset)
    return fmt::format("{:#x} shows another segment, or another part of it", mapping.range.begin);
  if (area.read_only == mapping.read_only_attach) return {};
  return fmt::format("{:#x} is attached for {}", mapping.range.begin, area.read_only ? "reading only" : "writing");
}

Broken SpaceModel::compare(const model::AddressSpace& wanted,
                           const std::map<ObjectId, model::SharedMemory>& segments) const {
  if (foreign_) return "its memory is still that of stasis";
  const auto find_excess = [this](AddressRange between) -> Broken {
    const uint64_t filled = first_filled(between);
    if (between.empty() || filled == between.end) return {};
    return fmt::format("the page at {:#x} is filled, and should be empty", filled);
  };
  size_t ours = 0;
  auto page = wanted.pages.begin();
  for (const auto& mapping : wanted.mappings) {
    if (placed_by_kernel(mapping)) continue;
    ++ours;
    const auto found = areas_.find(mapping.range.begin);
    if (found == areas_.end() || found->second.end != mapping.range.end)
      return fmt::format("{:#x}-{:#x} is not mapped as it should be", mapping.range.begin, mapping.range.end);
    if (found->second.protection != mapping.protection) {
      return fmt::format("{:#x} has protection {} instead of {}", mapping.range.begin, found->second.protection,
                         mapping.protection);
    }
    if (found->second.shared != is_shared(mapping))
      return fmt::format("{:#x} is {}shared", mapping.range.begin, is_shared(mapping) ? "not " : "");
    if (found->second.never_huge && !mapping.advice.contains(MADV_NOHUGEPAGE))
      return fmt::format("{:#x} never gets huge pages (MAP_STACK)", mapping.range.begin);
    const auto segment = segments.find(mapping.shared_memory);
    const bool system_v = segment != segments.end() && segment->second.system_v.has_value();
    if (auto broken = compare_attached(mapping, found->second, system_v)) return broken;
    if (is_shared(mapping)) continue;  // its pages are the segment's or the file's
    while (page != wanted.pages.end() && page->range.end <= mapping.range.begin) ++page;
    uint64_t seen = mapping.range.begin;  // up to here, no page is filled that should not be
    for (; page != wanted.pages.end() && page->range.begin < mapping.range.end; ++page) {
      const AddressRange stored{std::max(page->range.begin, mapping.range.begin),
                                std::min(page->range.end, mapping.range.end)};
      if (const uint64_t filled = filled_until(stored); filled < stored.end)
        return fmt::format("the page at {:#x} is not filled", filled);
      if (auto excess = find_excess({seen, stored.begin})) return excess;
      seen = stored.end;
      if (page->range.end > mapping.range.end) break;  // the rest belongs to the next mapping
    }
    if (auto excess = find_excess({seen, mapping.range.end})) return excess;
  }
  if (areas_.size() != ours) return fmt::format("it has {} mappings instead of {}", areas_.size(), ours);
  return {};
}

bool SpaceModel::keeps_huge_pages_out(const model::AddressSpace& wanted) const {
  return std::ranges::all_of(wanted.mappings, [this](const model::Mapping& mapping) {
    const bool anonymous = mapping.backing == model::Backing::private_anonymous;
    if (!anonymous || !mapping.advice.contains(MADV_NOHUGEPAGE)) return true;
    const auto found = areas_.find(mapping.range.begin);
    return found != areas_.end() && found->second.never_huge;
  });
}

}  // namespace stasis::plan
