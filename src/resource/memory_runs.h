// Which pages of a live address space have to be stored.
#pragma once

#include <sys/types.h>

#include <vector>

#include "base/result.h"
#include "model/memory.h"

namespace stasis::resource {

/// Pages of private mappings that the application has made its own (anonymous pages, in memory or swapped out) and
/// those of the vDSO, ascending. Guards (MADV_GUARD_INSTALL) are noted in the mappings.
Result<std::vector<model::PageRun>> find_own_pages(pid_t witness, std::vector<model::Mapping>& mappings);

/// Marks the runs of `child` whose page frames are those of the parent at the same addresses. Needs CAP_SYS_ADMIN for
/// the frame numbers; without it nothing is marked.
Status mark_shared_pages(pid_t child_pid, model::AddressSpace& child, pid_t parent_pid,
                         const model::AddressSpace& parent);

/// Cuts `runs` to the parts inside [begin, end), in order; pure.
std::vector<model::PageRun> runs_within(const std::vector<model::PageRun>& runs, AddressRange where);

}  // namespace stasis::resource
