// Which pages of a live address space have to be stored.
#pragma once

#include <sys/types.h>

#include <optional>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "kernel/process.h"
#include "memory/dirty_tracking.h"
#include "model/memory.h"

namespace stasis::resource {

struct OwnPages {
  std::vector<model::PageRun> runs;
  std::vector<AddressRange> unchanged;  ///< of these, since they were last write-protected (memory/dirty_tracking.h)
  std::optional<uint64_t> tracked;      ///< one page among them that is under tracking
};
/// Pages of private mappings that the application has made its own (anonymous pages, in memory or swapped out) and
/// those of the vDSO, ascending. Guards (MADV_GUARD_INSTALL) are noted in the mappings.
Result<OwnPages> find_own_pages(pid_t witness, std::vector<model::Mapping>& mappings);
/// The walk over the page tables alone, of all of user space below `end_of_scan`: while somebody else reads what is
/// mapped. On all processors, if it is large.
Result<std::vector<kernel::PageScan>> scan_own_pages(pid_t witness);
inline constexpr uint64_t end_of_scan = (uint64_t{1} << 47) - page_size;
/// What it has found in these mappings, none of which lies higher; pure.
OwnPages own_pages_in(std::vector<model::Mapping>& mappings, const std::vector<kernel::PageScan>& found);
/// Which tracker an address space has, by one of its pages that are under tracking; nullptr: none. `suffix` is that of
/// its pagemap: if the images of the round before hold another address space under it, nothing is unchanged.
Result<const memory::Tracker*> recognise(const memory::Trackers&, pid_t witness, std::optional<uint64_t> tracked_page,
                                         std::string_view suffix, std::vector<AddressRange>& unchanged);
/// Begins a round for the mappings: what is written from now on will count as written, and what has been before is not
/// unchanged. Where memory may be pinned (resource/pinned_memory.h) what counts as written goes on doing so.
Status protect(const kernel::Userfaultfd&, pid_t witness, const std::vector<memory::Trackable>& mappings,
               std::vector<AddressRange>& unchanged);

/// /proc/PID/pagemap; ErrorCode::gone when the task has died.
Result<UniqueFd> open_pagemap(pid_t witness);
/// Whether pages of the mapping can be somebody's own.
bool is_private(const model::Mapping& mapping);

/// Those of the private mappings in which there are any; pure.
std::vector<memory::Trackable> mappings_with_own_pages(const std::vector<model::Mapping>&,
                                                       const std::vector<model::PageRun>&);

/// Marks the runs of `child` whose page frames are those of the parent at the same addresses. Needs CAP_SYS_ADMIN for
/// the frame numbers; without it nothing is marked.
Status mark_shared_pages(pid_t child_pid, model::AddressSpace& child, pid_t parent_pid,
                         const model::AddressSpace& parent);

/// Cuts `runs` to the parts inside [begin, end), in order; pure.
std::vector<model::PageRun> runs_within(const std::vector<model::PageRun>& runs, AddressRange where);

}  // namespace stasis::resource
