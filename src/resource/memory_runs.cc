#include "resource/memory_runs.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>

#include <fmt/format.h>

#include "base/parallel.h"
#include "kernel/proc.h"
#include "kernel/process.h"
#include "memory/increments.h"

namespace stasis::resource {
namespace {

using kernel::page_is_file;
using kernel::page_is_guard;
using kernel::page_is_present;
using kernel::page_is_swapped;
using kernel::page_is_zero_frame;

constexpr size_t worth_a_thread = 4;  ///< parts of an address space

/// One walk over the page tables of the whole address space: empty reservations have none and cost nothing.
Result<std::vector<kernel::PageScan>> scan(int pagemap, AddressRange where) {
  constexpr uint64_t own = page_is_file | page_is_zero_frame;  // inverted: neither a file's page nor the page of zeros
  constexpr uint64_t tracking = kernel::page_is_wp_allowed | kernel::page_is_written | page_is_present;
  auto found =
      kernel::scan_pages(pagemap, where, own, page_is_present | page_is_swapped, own, page_is_guard | tracking);
  // Kernels that know no guards refuse to speak of them; before 6.7 the page of zeros cannot be told apart either,
  // which costs time but no correctness: zeros are dropped when they are stored.
  if (!found && found.error().errno_value() == EINVAL) {
    found = kernel::scan_pages(pagemap, where, own, page_is_present | page_is_swapped, own, tracking);
  }
  if (!found && found.error().code() == ErrorCode::unsupported) {
    found = kernel::scan_pages(pagemap, where, page_is_file, page_is_present | page_is_swapped, page_is_file,
                               page_is_guard);
  }
  return found;
}

void append(std::vector<model::PageRun>& runs, model::PageRun next) {
  if (next.range.empty()) return;
  if (!runs.empty() && runs.back().range.end == next.range.begin &&
      runs.back().shared_with_parent == next.shared_with_parent && runs.back().keep_zeros == next.keep_zeros) {
    runs.back().range.end = next.range.end;
  } else {
    runs.push_back(next);
  }
}

void add_own(OwnPages& own, const model::Mapping& mapping, AddressRange part, uint64_t categories) {
  const bool is_anonymous = mapping.backing == model::Backing::private_anonymous;
  const bool is_huge = (mapping.map_flags & MAP_HUGETLB) != 0;
  // A huge page is there or not, as a whole: where a child has zeros in it, its parent's bytes could not be dropped.
  append(own.runs, {part, false, !is_anonymous || is_huge});
  if (memory::is_unchanged(categories, is_anonymous)) own.unchanged.push_back(part);
  if (is_anonymous && !is_huge && (categories & kernel::page_is_wp_allowed) != 0) own.tracked = part.begin;
}

/// Splits a run by whether the frames are the same.
Status compare_frames(int child, int parent, const model::PageRun& run, std::vector<model::PageRun>& into) {
  constexpr uint64_t batch = uint64_t{32} << 20;  // 64 KiB of words
  constexpr uint64_t present = uint64_t{1} << 63, frame = (uint64_t{1} << 55) - 1;
  for (uint64_t at = run.range.begin; at < run.range.end; at += batch) {
    const AddressRange part{at, std::min(at + batch, run.range.end)};
    const auto ours = TRY(kernel::read_pagemap(child, part));
    const auto theirs = TRY(kernel::read_pagemap(parent, part));
    for (size_t i = 0; i < ours.size(); ++i) {
      const bool both = (ours[i] & theirs[i] & present) != 0;
      const bool same = both && (ours[i] & frame) != 0 && (ours[i] & frame) == (theirs[i] & frame);
      const uint64_t begin = part.begin + i * page_size;
      append(into, {{begin, begin + page_size}, same, run.keep_zeros});
    }
  }
  return {};
}

/// Where both have a private mapping of the same thing: only there fork can have left them common pages.
std::vector<AddressRange> common_ranges(const model::AddressSpace& child, const model::AddressSpace& parent) {
  std::vector<AddressRange> common;
  auto theirs = parent.mappings.begin();
  for (const model::Mapping& mapping : child.mappings) {
    if (!is_private(mapping)) continue;
    while (theirs != parent.mappings.end() && theirs->range.end <= mapping.range.begin) ++theirs;
    for (auto one = theirs; one != parent.mappings.end() && one->range.begin < mapping.range.end; ++one) {
      const bool alike = one->backing == mapping.backing && one->file == mapping.file &&
                         (mapping.backing != model::Backing::private_file ||
                          mapping.offset - mapping.range.begin == one->offset - one->range.begin);
      if (alike)
        common.push_back(
            {std::max(mapping.range.begin, one->range.begin), std::min(mapping.range.end, one->range.end)});
    }
  }
  return common;
}

}  // namespace

std::vector<model::PageRun> runs_within(const std::vector<model::PageRun>& runs, AddressRange where) {
  std::vector<model::PageRun> inside;
  auto run = std::ranges::upper_bound(runs, where.begin, {}, [](const model::PageRun& r) { return r.range.end; });
  for (; run != runs.end() && run->range.begin < where.end; ++run) {
    model::PageRun part = *run;
    part.range = {std::max(part.range.begin, where.begin), std::min(part.range.end, where.end)};
    inside.push_back(part);
  }
  return inside;
}

Result<UniqueFd> open_pagemap(pid_t witness) {
  const std::string path = fmt::format("/proc/{}/pagemap", witness);
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid() && errno == ENOENT) return fail(Error::gone("open " + path, fmt::format("task {}", witness)));
  if (!fd.valid()) return fail_errno("open", path);
  return fd;
}

bool is_private(const model::Mapping& mapping) {
  return mapping.backing == model::Backing::private_anonymous || mapping.backing == model::Backing::private_file;
}

OwnPages own_pages_in(std::vector<model::Mapping>& mappings, const std::vector<kernel::PageScan>& found) {
  OwnPages own;
  auto next = found.begin();
  for (model::Mapping& mapping : mappings) {
    if (mapping.backing == model::Backing::vdso) append(own.runs, {mapping.range, false, true});
    if (!is_private(mapping)) continue;
    while (next != found.end() && next->range.end <= mapping.range.begin) ++next;
    for (auto one = next; one != found.end() && one->range.begin < mapping.range.end; ++one) {
      const AddressRange part{std::max(one->range.begin, mapping.range.begin),
                              std::min(one->range.end, mapping.range.end)};
      if ((one->categories & page_is_guard) != 0)
        mapping.guards.push_back(part);
      else if ((mapping.map_flags & model::map_droppable) == 0)  // pages that may go, and secrets, stay out of images
        add_own(own, mapping, part, one->categories);
    }
  }
  return own;
}

namespace {

/// The address space in parts that are about the same work: so much of mappings that can have pages.
Result<std::vector<AddressRange>> parts_to_scan(pid_t witness) {
  constexpr uint64_t much = 64ull << 20, most = 64;
  std::vector<AddressRange> parts;
  uint64_t begin = 0, gathered = 0;
  const auto end_part = [&](uint64_t at) {
    parts.push_back({begin, at});
    begin = at, gathered = 0;
  };
  for (const auto& vma : TRY(kernel::read_maps(witness))) {
    if (vma.protection == PROT_NONE || vma.range.end > end_of_scan) continue;
    // Reservations of many terabytes are cheap, and all alike.
    const uint64_t step = std::max(much, (vma.range.size() / most + page_size - 1) / page_size * page_size);
    gathered += vma.range.size();
    for (uint64_t at = vma.range.begin + step; at < vma.range.end; at += step) end_part(at);
    if (gathered >= step) end_part(vma.range.end);
  }
  end_part(end_of_scan);
  return parts;
}

}  // namespace

Result<std::vector<kernel::PageScan>> scan_own_pages(pid_t witness) {
  const auto pagemap = TRY(open_pagemap(witness));
  return scan(pagemap.get(), {0, end_of_scan});
}

Result<std::vector<kernel::PageScan>> scan_own_pages_by_all(pid_t witness) {
  const auto pagemap = TRY(open_pagemap(witness));
  const auto parts = TRY(parts_to_scan(witness));
  std::vector<std::vector<kernel::PageScan>> found(parts.size());
  TRY(parallel_for(
      parts.size(),
      [&](size_t index) -> Status {
        found[index] = TRY(scan(pagemap.get(), parts[index]));
        return {};
      },
      worth_a_thread));
  // As if it had been one walk.
  std::vector<kernel::PageScan> all;
  for (const auto& scans : found) {
    for (const auto& one : scans) kernel::append(all, one);
  }
  return all;
}

Result<OwnPages> find_own_pages(pid_t witness, std::vector<model::Mapping>& mappings) {
  uint64_t end = 0;
  for (const model::Mapping& mapping : mappings) {
    if (mapping.backing != model::Backing::vsyscall) end = std::max(end, mapping.range.end);
  }
  if (end == 0) return OwnPages{};
  const auto pagemap = TRY(open_pagemap(witness));
  const auto found = TRY_IN(fmt::format("find the pages of task {}", witness), scan(pagemap.get(), {0, end}));
  return own_pages_in(mappings, found);
}

Result<const memory::Tracker*> recognise(const memory::Trackers& trackers, pid_t witness,
                                         std::optional<uint64_t> tracked_page, std::string_view suffix,
                                         std::vector<AddressRange>& unchanged) {
  const memory::Tracker* found = nullptr;
  if (tracked_page && !trackers.empty())
    found = TRY(trackers.find(TRY(open_pagemap(witness)).get(), *tracked_page, suffix));
  if (found == nullptr || found->suffix != suffix) unchanged.clear();
  return found;
}

Status protect(const kernel::Userfaultfd& tracker, pid_t witness, const std::vector<AddressRange>& mappings,
               std::vector<AddressRange>& unchanged) {
  const auto pagemap = TRY(open_pagemap(witness));
  unchanged = memory::subtract(unchanged, TRY(memory::protect_own_pages(tracker, pagemap.get(), mappings)));
  return {};
}

std::vector<AddressRange> mappings_with_own_pages(const std::vector<model::Mapping>& mappings,
                                                  const std::vector<model::PageRun>& runs) {
  std::vector<AddressRange> found;
  for (const model::Mapping& mapping : mappings) {
    if (is_private(mapping) && !runs_within(runs, mapping.range).empty()) found.push_back(mapping.range);
  }
  return found;
}

Status mark_shared_pages(pid_t child_pid, model::AddressSpace& child, pid_t parent_pid,
                         const model::AddressSpace& parent) {
  const auto common = common_ranges(child, parent);
  if (common.empty()) return {};
  const auto ours = TRY(open_pagemap(child_pid));
  const auto theirs = TRY(open_pagemap(parent_pid));
  std::vector<model::PageRun> marked;
  auto where = common.begin();
  for (const model::PageRun& run : child.pages) {
    uint64_t at = run.range.begin;
    while (at < run.range.end) {
      while (where != common.end() && where->end <= at) ++where;
      const uint64_t begin = where == common.end() ? run.range.end : std::clamp(where->begin, at, run.range.end);
      append(marked, {{at, begin}, false, run.keep_zeros});
      const uint64_t end = where == common.end() ? begin : std::min(where->end, run.range.end);
      if (begin < end) TRY(compare_frames(ours.get(), theirs.get(), {{begin, end}, false, run.keep_zeros}, marked));
      at = std::max(begin, end);
    }
  }
  child.pages = std::move(marked);
  return {};
}

}  // namespace stasis::resource
