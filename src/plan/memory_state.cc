// State of mappings and of the whole address space that is set when the contents are there: locks would make the kernel
// fill pages in, guards and seals would keep them out.
#include <fmt/format.h>
#include <linux/prctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstddef>
#include <set>

#include "plan/memory.h"

namespace stasis::plan {
namespace {

constexpr uint32_t mlock_on_fault = 1;  // MLOCK_ONFAULT
constexpr int guard_install = 102;      // MADV_GUARD_INSTALL, Linux 6.13
constexpr uint32_t mseal = 462;
constexpr int set_memory_merge = 67;  // PR_SET_MEMORY_MERGE, Linux 6.4

struct MmMap {  // struct prctl_mm_map
  uint64_t start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end, env_start,
      env_end;
  uint64_t auxv;
  uint32_t auxv_size, exe_fd;
};

/// Set in one call: PR_SET_MM_AUXV by itself needs CAP_SYS_RESOURCE, which PR_SET_MM_MAP does not (kernel/sys.c).
Calls layout_calls(const model::MemoryLayout& layout, int exe_fd) {
  const ByteView auxv{reinterpret_cast<const uint8_t*>(layout.auxv.data()), layout.auxv.size() * sizeof(uint64_t)};
  const MmMap map{layout.start_code,
                  layout.end_code,
                  layout.start_data,
                  layout.end_data,
                  layout.start_brk,
                  layout.brk,
                  layout.start_stack,
                  layout.arg_start,
                  layout.arg_end,
                  layout.env_start,
                  layout.env_end,
                  0,
                  static_cast<uint32_t>(auxv.size()),
                  static_cast<uint32_t>(exe_fd)};
  auto argument = auxv.empty() ? struct_in(map) : struct_pointing_to(map, offsetof(MmMap, auxv), auxv);
  return {call(SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, std::move(argument), sizeof map, 0)};
}

Call lock_call(const model::Mapping& mapping) {
  auto lock =
      call(SYS_mlock2, mapping.range.begin, mapping.range.size(), mapping.locked_on_fault ? mlock_on_fault : 0u);
  // The mapping is locked all the same where pages cannot be filled in (PROT_NONE, guards): ENOMEM says no more than
  // that.
  const bool fillable = mapping.protection != PROT_NONE && mapping.guards.empty();
  return fillable || mapping.locked_on_fault ? lock
                                             : expecting(std::move(lock), Expectation::Kind::success_or, -ENOMEM);
}

/// Calls for one mapping that need its contents in place.
Calls state_calls(const model::AddressSpace& space, const model::Mapping& mapping) {
  Calls calls;
  const uint64_t begin = mapping.range.begin, size = mapping.range.size();
  for (const auto& guard : mapping.guards) calls.push_back(call(SYS_madvise, guard.begin, guard.size(), guard_install));
  for (const int advice : mapping.advice) {
    if (advice != MADV_HUGEPAGE && advice != MADV_NOHUGEPAGE) calls.push_back(call(SYS_madvise, begin, size, advice));
  }
  if (is_kept_unmerged(space, mapping)) calls.push_back(call(SYS_madvise, begin, size, MADV_UNMERGEABLE));
  if (!mapping.name.empty()) {
    // A kernel without CONFIG_ANON_VMA_NAME answers EINVAL. Names are for people: no reason to fail.
    calls.push_back(expecting(call(SYS_prctl, PR_SET_VMA, PR_SET_VMA_ANON_NAME, begin, size, text(mapping.name)),
                              Expectation::Kind::success_or, -EINVAL));
  }
  if (mapping.locked) calls.push_back(lock_call(mapping));
  return calls;
}

/// Keys are handed out in ascending order: those below the highest are taken as well, and freed again if unused.
void plan_keys(Sink& sink, const model::AddressSpace& space) {
  std::set<int> keys;
  for (const auto& mapping : space.mappings) {
    if (mapping.protection_key > 0) keys.insert(mapping.protection_key);
  }
  if (keys.empty()) return;
  Calls calls;
  for (int key = 1; key <= *keys.rbegin(); ++key)
    calls.push_back(expecting(call(SYS_pkey_alloc, 0, 0), Expectation::Kind::exactly, key));
  for (const auto& mapping : space.mappings) {
    if (mapping.protection_key > 0) {
      calls.push_back(call(SYS_pkey_mprotect, mapping.range.begin, mapping.range.size(), mapping.protection,
                           mapping.protection_key));
    }
  }
  for (int key = 1; key <= *keys.rbegin(); ++key) {
    if (!keys.contains(key)) calls.push_back(call(SYS_pkey_free, key));
  }
  sink.perform("protection keys", "memory.keys", std::move(calls));
}

Status plan_layout(Emission& out, const MemoryPlan& plan, const OpenNumbers& open) {
  auto sink = out.process(plan.pid);
  if (const auto number = open(plan.space->executable)) {
    sink.perform("memory layout and executable", "memory.layout", layout_calls(plan.space->layout, *number),
                 {"CAP_CHECKPOINT_RESTORE"});
    return {};
  }
  const auto description = out.application.descriptions.find(plan.space->executable);
  if (description == out.application.descriptions.end()) {
    return fail(Error::invalid("plan memory",
                               fmt::format("the executable of address space {} is not in the images", plan.space->id)));
  }
  const auto* maker = out.maker(description->second);
  if (maker == nullptr) return fail(Error::internal("plan memory", "nobody makes the executable's kind of file"));
  const int exe_fd = out.temporary_fd();
  const auto placement = out.placement(description->second, exe_fd);
  TRY(maker->make(out.application, {&placement, 1}, sink));
  sink.perform("memory layout and executable", "memory.layout", layout_calls(plan.space->layout, exe_fd),
               {"CAP_CHECKPOINT_RESTORE"});
  sink.add(Close{exe_fd});
  return {};
}

}  // namespace

bool is_kept_unmerged(const model::AddressSpace& space, const model::Mapping& mapping) {
  const bool is_private =
      mapping.backing == model::Backing::private_anonymous || mapping.backing == model::Backing::private_file;
  const bool can_be_merged = is_private && (mapping.map_flags & (MAP_HUGETLB | model::map_droppable)) == 0;
  return space.merge_any && can_be_merged && !mapping.advice.contains(MADV_MERGEABLE);
}

Status plan_memory_state(Emission& out, const MemoryPlan& plan, const OpenNumbers& open) {
  auto sink = out.process(plan.pid);
  // It applies to what is mapped as well as to what will be: exceptions come later.
  if (plan.space->merge_any)
    sink.perform("merging of memory", "memory.merging", {call(SYS_prctl, set_memory_merge, 1, 0, 0, 0)});
  for (const auto& mapping : plan.space->mappings) {
    if (auto calls = state_calls(*plan.space, mapping); !calls.empty()) {
      sink.perform(fmt::format("state of the mapping at {:#x}", mapping.range.begin), "memory.state", std::move(calls));
    }
  }
  plan_keys(sink, *plan.space);
  TRY(plan_layout(out, plan, open));
  if (plan.space->lock_future) {
    const int flags = MCL_FUTURE | (plan.space->lock_future_on_fault ? MCL_ONFAULT : 0);
    sink.perform("lock future memory", "memory.lock_future", {call(SYS_mlockall, flags)});
  }
  Calls seals;
  for (const auto& mapping : plan.space->mappings) {
    if (mapping.sealed) seals.push_back(call(mseal, mapping.range.begin, mapping.range.size(), 0));
  }
  if (!seals.empty()) sink.perform("seals", "memory.seals", std::move(seals));
  return {};
}

}  // namespace stasis::plan
