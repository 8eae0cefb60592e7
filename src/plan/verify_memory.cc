// Mappings: the kernel's rules are in SpaceModel; those about the agent and the images' descriptor are ours.
#include <sys/mman.h>

#include <algorithm>

#include "plan/verify_interpreter.h"

namespace stasis::plan::verifier {

bool Interpreter::spares_agent(uint64_t begin, uint64_t length) {
  const bool touched = AddressRange{begin, begin + length}.overlaps(program_.agent_area);
  require(!touched, "it would touch the agent at {:#x}", program_.agent_area.begin);
  return !problem_;
}

void Interpreter::map(uint64_t begin, uint64_t length, uint32_t prot, bool shared, uint32_t flags) {
  if (spares_agent(begin, length)) obey(now_->space->map(begin, length, prot, shared, flags));
}

void Interpreter::apply(const Mmap& mmap) {
  if (open_slot(mmap.fd) != nullptr) map(mmap.addr, mmap.length, mmap.prot, mmap.is_shared);
}

void Interpreter::apply(const MmapAnon& mmap) { map(mmap.addr, mmap.length, mmap.prot, mmap.is_shared, mmap.flags); }

void Interpreter::apply(const Mremap& remap) {
  if (spares_agent(remap.new_addr, remap.length)) obey(now_->space->move(remap.addr, remap.length, remap.new_addr));
}

void Interpreter::apply(const Munmap& unmapped) {
  if (spares_agent(unmapped.addr, unmapped.length)) obey(now_->space->unmap(unmapped.addr, unmapped.length));
}

void Interpreter::apply(const Mprotect& protect) {
  obey(now_->space->protect(protect.addr, protect.length, protect.prot));
}

void Interpreter::apply(const DropPages& drop) { obey(now_->space->drop(drop.addr, drop.length)); }

void Interpreter::apply(const ClearMemory&) {
  require(!program_.agent_area.empty(), "there is no agent area to keep");
  require(!now_->space->owes(), "pages of its memory are still to come");
  *now_->space = SpaceModel();  // also for those who share it
}

void Interpreter::apply(const AttachSegment& attach) {
  const auto segment = wanted_.shared_memories.find(attach.segment);
  const bool known = segment != wanted_.shared_memories.end() && segment->second.system_v;
  require(extent_ == Extent::tree ||
              (known && segment->second.system_v->id == attach.id && segment->second.size == attach.length),
          "{} is no System V segment of that id and size (EINVAL)", attach.segment);
  if (!problem_ && spares_agent(attach.addr, attach.length))
    obey(now_->space->attach(attach.addr, attach.length, attach.prot, attach.segment));
}

void Interpreter::apply(const LoadPages& load) {
  require(load.fd != program_.images_fd, "descriptor {} is the images' directory (EISDIR)", load.fd);
  const auto* slot = open_slot(load.fd);
  if (problem_) return;
  require(slot->description.value == 0, "descriptor {} is the application's own file {}, not one of pages", load.fd,
          slot->description);
  require(slot->terminal == 0 && slot->pidfd_of.value == 0, "descriptor {} is no file of pages", load.fd);
  fill(load.runs);
}

void Interpreter::apply(const DecodePages& decode) {
  require(now_->pid.value != 0, "the supervisor's own memory is not the application's");
  fill(decode.runs);
}

/// The number is free again at the end, and was for nobody to see.
void Interpreter::apply(const OwePages& owe) {
  put(owe.fd, {});
  apply(Close{owe.fd});
  require(owe.mappings.size() % 2 == 0 && owe.runs.size() % 2 == 0, "its ranges are not pairs of address and length");
  if (problem_) return;
  auto mapping = owe.mappings.begin();
  const auto watched_until = [&](uint64_t address) {  // runs ascend as the mappings do
    while (mapping != owe.mappings.end() && mapping[0] + mapping[1] <= address) mapping += 2;
    return mapping == owe.mappings.end() || mapping[0] > address ? address : mapping[0] + mapping[1];
  };
  for (size_t i = 0; i < owe.mappings.size(); i += 2)
    require_patient({owe.mappings[i], owe.mappings[i] + owe.mappings[i + 1]});
  for (size_t i = 0; i < owe.runs.size(); i += 2) {
    const AddressRange run{owe.runs[i], owe.runs[i] + owe.runs[i + 1]};
    require(run.end <= watched_until(run.begin), "the pages at {:#x} are not in a mapping that is watched", run.begin);
    obey(now_->space->owe(run));
  }
}

void Interpreter::require_patient(AddressRange range) {
  const auto* task = tasks_wanted_.find(now_->pid);
  if (task == nullptr) return reject("only a task of the application has pages that come later");
  const auto& mappings = wanted_.address_spaces.at(task->address_space).mappings;
  const auto found = std::ranges::lower_bound(mappings, range, {}, &model::Mapping::range);
  require(found != mappings.end() && found->range == range, "{:#x}-{:#x} is no mapping of the application", range.begin,
          range.end);
  if (problem_) return;
  // mm/userfaultfd.c knows no private pages of files. Huge pages are promised when they are mapped; mlock(2) fills all
  // pages; and a child's copy with MADV_WIPEONFORK is watched as well, but must stay empty.
  require(found->backing == model::Backing::private_anonymous &&
              (found->map_flags & (MAP_HUGETLB | model::map_droppable)) == 0 && !found->locked &&
              !found->advice.contains(MADV_WIPEONFORK),
          "the mapping at {:#x} cannot wait for its pages", range.begin);
}

/// The file has been made by then, and is filled: which one that is, its room knows.
void Interpreter::apply(const DecodeFile& decode) {
  require((decode.fd < 0) != decode.path.empty(), "it says neither a descriptor nor a path, or both");
  require(now_->pid.value == 0 || decode.fd >= 0, "only the supervisor makes files by their paths");
  require(now_->pid.value != 0 || decode.fd < 0, "the supervisor's descriptors are passing ones");
  if (problem_ || decode.fd < 0) return;
  require(decode.fd != program_.images_fd, "descriptor {} is the images' directory (EISDIR)", decode.fd);
  open_slot(decode.fd);
}

void Interpreter::fill(const std::vector<uint64_t>& runs) {
  require(runs.size() % 2 == 0, "its runs are not pairs of address and length");
  for (size_t i = 0; i + 1 < runs.size(); i += 2) obey(now_->space->fill({runs[i], runs[i] + runs[i + 1]}));
}

}  // namespace stasis::plan::verifier
