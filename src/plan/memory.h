// The commands that rebuild one address space, at its final addresses from the start.
#pragma once

#include "plan/emission.h"
#include "plan/lazy_memory.h"

namespace stasis::plan {

/// Who makes the shared anonymous segments: the first address space that maps each.
class SharedSegments {
 public:
  /// `order`: that in which address spaces are built; the first that maps a segment makes it.
  SharedSegments(Emission& out, const std::vector<Pid>& order);
  /// True for the process that has to create the segment.
  bool is_owner(ObjectId segment, Pid pid) const { return owners_.at(segment) == pid; }
  Pid owner(ObjectId segment) const { return owners_.at(segment); }
  /// The number under which the owner holds the segment open until all users have mapped it.
  std::map<ObjectId, int> held_at;

 private:
  std::map<ObjectId, Pid> owners_;
};

struct MemoryPlan {
  Pid pid;
  const model::AddressSpace* space = nullptr;
  /// The creator's address space, if its memory was complete when it forked and pages are shared with it.
  const model::AddressSpace* inherited_from = nullptr;
  /// Files that can be made only once come with the descriptors: memory that is built before those has to do without.
  enum class Part { all, without_passed_files, passed_files_only };
  Part part = Part::all;
  LazyMemory* lazy = nullptr;
};

/// Mappings and their contents. Shared segments are made by `plan_segments` before.
Status plan_mappings(Emission&, const MemoryPlan&, SharedSegments&, const OpenNumbers&);
/// Creates the segments that the process owns and holds them open for the others.
Status plan_segments(Emission&, const MemoryPlan&, SharedSegments&);
/// MADV_UNMERGEABLE: PR_SET_MEMORY_MERGE makes all mergeable that can be (mm/ksm.c, vma_ksm_compatible).
bool is_kept_unmerged(const model::AddressSpace&, const model::Mapping&);
/// How much room behind the agent area `plan_segments` needs for a segment.
uint64_t scratch_space(const model::SharedMemory&);
/// Once everybody has mapped what he needs.
void close_segments(Emission&, Pid, SharedSegments&);
/// Locks, advice, keys, names, layout (PR_SET_MM_MAP): after the contents.
Status plan_memory_state(Emission&, const MemoryPlan&, const OpenNumbers&);

}  // namespace stasis::plan
