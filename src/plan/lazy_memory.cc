#include "plan/lazy_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "base/ranges.h"
#include "plan/page_loading.h"

namespace stasis::plan {
namespace {

/// The kernel finds the pages of a robust list and clear_child_tid missing, instead of waiting for them, when the
/// thread exits (fs/userfaultfd.c, handle_userfault: PF_EXITING), and an rseq area must not be missing in a signal or
/// preemption. What registers point to is needed first, and by calls that are begun again while a stop is pending:
/// they would fail (arch/x86/mm/fault.c, fault_signal_pending).
void need_pages_of(const model::Thread& thread, std::vector<AddressRange>& needed) {
  constexpr uint64_t reach = 256;  // bytes of a structure, and the red zone below a stack pointer
  const auto need = [&](uint64_t address, uint64_t before, uint64_t after) {
    if (address < page_size || address > ~uint64_t{0} - 2 * page_size) return;
    needed.push_back({(address - before) & ~(page_size - 1), ((address + after) & ~(page_size - 1)) + page_size});
  };
  need(thread.robust_list, 0, reach);
  need(thread.rseq.address, 0, reach);
  need(thread.clear_child_tid, 0, sizeof(int) - 1);
  const auto& general = thread.registers.general;
  for (size_t at = 0; at + sizeof(uint64_t) <= general.size(); at += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, general.data() + at, sizeof word);
    need(word, reach, reach);
  }
}

void add_shared_pages(const model::Application& application, const model::Task& child,
                      std::vector<AddressRange>& ranges) {
  for (const auto& page : application.address_spaces.at(child.address_space).pages) {
    if (page.shared_with_parent) ranges.push_back(page.range);
  }
}

}  // namespace

RangesOfSpaces needed_at_once(const model::Application& application, const std::set<Pid>& heirs) {
  RangesOfSpaces found;
  const model::TaskIndex tasks(application);
  for (const Pid heir : heirs) {
    const auto* child = tasks.find(heir);
    add_shared_pages(application, *child, found[tasks.find(child->parent)->address_space]);
  }
  for (const auto& task : application.tasks) {
    if (task.state == model::TaskState::zombie) continue;
    for (const auto& thread : task.threads) need_pages_of(thread, found[task.address_space]);
  }
  for (auto& [space, needed] : found) merge(needed);
  return found;
}

bool can_wait(const model::Mapping& mapping) {
  return mapping.backing == model::Backing::private_anonymous && !mapping.locked &&
         (mapping.map_flags & (MAP_HUGETLB | model::map_droppable)) == 0 && !mapping.advice.contains(MADV_WIPEONFORK);
}

/// What might be inherited is not left out on either side: pages of zeros, which are not stored, are told from others
/// when they are read, and then they are missing in both.
RangesOfSpaces pages_that_can_wait(const model::Application& application) {
  std::set<Pid> heirs;
  const model::TaskIndex tasks(application);
  for (const auto& task : application.tasks) {
    const auto* parent = tasks.find(task.parent);
    const bool has_memory = task.state != model::TaskState::zombie && parent != nullptr;
    if (has_memory && parent->address_space != task.address_space) heirs.insert(task.pid);
  }
  auto needed = needed_at_once(application, heirs);
  for (const Pid heir : heirs)
    add_shared_pages(application, *tasks.find(heir), needed[tasks.find(heir)->address_space]);
  for (auto& [space, ranges] : needed) merge(ranges);
  RangesOfSpaces found;
  for (const auto& [id, space] : application.address_spaces) {
    auto& ranges = found[id];
    for (const auto& mapping : space.mappings) {
      if (!can_wait(mapping)) continue;
      divide(mapping.range, needed[id], [&](AddressRange waiting) { ranges.push_back(waiting); }, [](AddressRange) {});
    }
  }
  return found;
}

LazyMemory::LazyMemory(const Emission& out, const std::set<Pid>& heirs) : enabled_(out.options.lazy) {
  if (enabled_) needed_ = needed_at_once(out.application, heirs);
}

void LazyMemory::owe(ObjectId space, AddressRange mapping, AddressRange pages) {
  if (pages.empty()) return;
  auto& [mappings, runs] = owed_[space];
  const bool is_first = mappings.empty() || mappings[mappings.size() - 2] != mapping.begin;
  if (is_first) mappings.insert(mappings.end(), {mapping.begin, mapping.size()});
  if (!is_first && runs[runs.size() - 2] + runs.back() == pages.begin)
    runs.back() += pages.size();
  else
    runs.insert(runs.end(), {pages.begin, pages.size()});
}

void LazyMemory::plan(Emission& out, const model::Task& task) {
  const auto owed = owed_.find(task.address_space);
  if (owed == owed_.end()) return;
  out.process(task.pid).add(
      OwePages{out.temporary_fd(), std::move(owed->second.mappings), std::move(owed->second.runs)});
  owed_.erase(owed);
}

}  // namespace stasis::plan
