#include "resource/memory_runs.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>

#include <fmt/format.h>

#include "base/parallel.h"
#include "kernel/available_memory.h"
#include "kernel/proc.h"
#include "kernel/process.h"
#include "memory/increments.h"
#include "resource/memory_mappings.h"
#include "resource/pinned_memory.h"

namespace stasis::resource {
namespace {

using kernel::page_is_file;
using kernel::page_is_guard;
using kernel::page_is_present;
using kernel::page_is_swapped;
using kernel::page_is_zero_frame;

/// Nor one in hugetlbfs, which has no name.
bool is_without_file(const model::Mapping& mapping) {
  return mapping.backing == model::Backing::private_anonymous && (mapping.map_flags & MAP_HUGETLB) == 0;
}

/// A stretch of an address space.
struct Part {
  AddressRange range;
  /// Nothing is mapped there but anonymous memory, in which no page is a file's. That the kernel tells only after a
  /// look at each page, which takes six times as long as the walk over the page tables itself.
  bool is_anonymous = false;
  uint64_t mapped = 0;  ///< bytes that can have pages
};

/// One walk over the page tables: empty reservations have none and cost nothing.
Result<std::vector<kernel::PageScan>> scan(int pagemap, const Part& part) {
  const uint64_t of_file = part.is_anonymous ? 0 : page_is_file;
  const uint64_t own = of_file | page_is_zero_frame;  // inverted: neither a file's page nor the page of zeros
  constexpr uint64_t tracking = kernel::page_is_wp_allowed | kernel::page_is_written | page_is_present;
  constexpr uint64_t in_use = page_is_present | page_is_swapped;
  auto found = kernel::scan_pages(pagemap, part.range, own, in_use, own, page_is_guard | tracking);
  // Kernels that know no guards refuse to speak of them; before 6.7 the page of zeros cannot be told apart either,
  // which costs time but no correctness: zeros are dropped when they are stored.
  if (!found && found.error().errno_value() == EINVAL)
    found = kernel::scan_pages(pagemap, part.range, own, in_use, own, tracking);
  if (!found && found.error().code() == ErrorCode::unsupported)
    found = kernel::scan_pages(pagemap, part.range, of_file, in_use, of_file, page_is_guard);
  return found;
}

/// An address space below `end`, in parts that are about the same work. What is mapped comes in order.
class Parts {
 public:
  void add(AddressRange mapping, bool is_anonymous, bool has_access) {
    if (is_anonymous != part_.is_anonymous) {
      end_part(mapping.begin);
      part_.is_anonymous = is_anonymous;
    }
    if (!has_access) return;
    // Reservations of many terabytes are cheap, and all alike.
    constexpr uint64_t most = 64;
    const uint64_t step = std::max(much, (mapping.size() / most + page_size - 1) / page_size * page_size);
    part_.mapped += mapping.size();
    for (uint64_t at = mapping.begin + step; at < mapping.end; at += step) {
      part_.mapped = step;
      end_part(at);
    }
    if (part_.mapped >= step) end_part(mapping.end);
  }
  Result<std::vector<kernel::PageScan>> scan(int pagemap, uint64_t end) && {
    end_part(end);
    join_small();
    std::vector<std::vector<kernel::PageScan>> found(parts_.size());
    constexpr uint64_t worth_a_thread = 4 * much;
    TRY(parallel_for(
        parts_.size(),
        [&](size_t index) -> Status {
          found[index] = TRY(resource::scan(pagemap, parts_[index]));
          return {};
        },
        mapped_ >= worth_a_thread ? 2 : SIZE_MAX));
    // As if it had been one walk.
    std::vector<kernel::PageScan> all;
    for (const auto& scans : found) {
      for (const auto& one : scans) kernel::append(all, one);
    }
    return all;
  }

 private:
  static constexpr uint64_t much = 64ull << 20;

  void end_part(uint64_t at) {
    part_.range.end = at;
    mapped_ += part_.mapped;
    if (!part_.range.empty()) parts_.push_back(part_);
    part_ = {{at, at}, part_.is_anonymous, 0};
  }
  /// Each is a system call.
  void join_small() {
    constexpr uint64_t worth_a_call = 4ull << 20;
    std::vector<Part> joined;
    for (Part part : parts_) {
      part.is_anonymous = part.is_anonymous && part.mapped >= worth_a_call;
      Part* last = joined.empty() ? nullptr : &joined.back();
      if (last != nullptr && !last->is_anonymous && !part.is_anonymous && last->mapped + part.mapped <= much) {
        last->range.end = part.range.end;
        last->mapped += part.mapped;
      } else {
        joined.push_back(part);
      }
    }
    parts_ = std::move(joined);
  }

  std::vector<Part> parts_;
  Part part_;  ///< the next one
  uint64_t mapped_ = 0;
};

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

Result<std::vector<kernel::PageScan>> scan_own_pages(pid_t witness) {
  constexpr uint64_t worth_a_look = 16ull << 20;
  const auto pagemap = TRY(open_pagemap(witness));
  Parts parts;
  if (kernel::resident(witness) >= worth_a_look) {
    for (const auto& vma : TRY(kernel::read_maps(witness))) {
      if (vma.range.end > end_of_scan) continue;
      parts.add(vma.range, !vma.shared && classify(vma).kind == VmaKind::anonymous && vma.inode == 0,
                vma.protection != PROT_NONE);
    }
  }
  return std::move(parts).scan(pagemap.get(), end_of_scan);
}

Result<OwnPages> find_own_pages(pid_t witness, std::vector<model::Mapping>& mappings) {
  uint64_t end = 0;
  Parts parts;
  for (const model::Mapping& mapping : mappings) {
    if (mapping.backing == model::Backing::vsyscall) continue;
    end = std::max(end, mapping.range.end);
    parts.add(mapping.range, is_without_file(mapping), mapping.protection != PROT_NONE);
  }
  if (end == 0) return OwnPages{};
  const auto pagemap = TRY(open_pagemap(witness));
  const auto found =
      TRY_IN(fmt::format("find the pages of task {}", witness), std::move(parts).scan(pagemap.get(), end));
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

Status protect(const kernel::Userfaultfd& tracker, pid_t witness, const std::vector<memory::Trackable>& mappings,
               std::vector<AddressRange>& unchanged) {
  if (TRY(may_be_pinned(witness))) return {};  // what is not protected counts as written
  const auto pagemap = TRY(open_pagemap(witness));
  unchanged = memory::subtract(unchanged, TRY(memory::protect_own_pages(tracker, pagemap.get(), mappings)));
  return {};
}

std::vector<memory::Trackable> mappings_with_own_pages(const std::vector<model::Mapping>& mappings,
                                                       const std::vector<model::PageRun>& runs) {
  std::vector<memory::Trackable> found;
  for (const model::Mapping& mapping : mappings) {
    if (is_private(mapping) && !runs_within(runs, mapping.range).empty())
      found.push_back({mapping.range, is_without_file(mapping)});
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
