// mm_entry ↔ address space. CRIU tells kinds of mappings by bits of vma_entry.status; what its format has no words for
// (keys, seals, names, MLOCK_ONFAULT) stands in fields of ours, which it skips.
//
// brk(0) answers exactly where the heap ends; everything else of an address space is seen from outside
// (resource/address_space.h). MCL_FUTURE is visible to nobody: it is recognised by what it does to a new mapping.
#include "resource/memory.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>

#include "resource/host.h"
#include "resource/memory_record.h"

namespace stasis::resource {
namespace {

using plan::call;
using plan::expecting;
using plan::ResultOf;
using Expected = plan::Expectation::Kind;

/// A page that is there although nobody has touched it was locked when it was mapped. One that is not may still be
/// locked, on fault: what is locked cannot be dropped (mm/madvise.c, madvise_dontneed_free_valid_vma).
void ask_about_locking(model::AddressSpace& space, Inquiry& inquiry) {
  const uint32_t flags = MAP_PRIVATE | MAP_ANONYMOUS;
  inquiry.ask(call(SYS_mmap, 0, page_size, PROT_READ | PROT_WRITE, flags, -1, 0),
              [](const Inquiry::Answer&) -> Status { return {}; });
  inquiry.ask(call(SYS_mincore, ResultOf{-1}, page_size, plan::Out{1}),
              [&space](const Inquiry::Answer& answer) -> Status {
                space.lock_future_on_fault = (answer.out.at(0).at(0) & 1) == 0;
                return {};
              });
  inquiry.ask(expecting(call(SYS_madvise, ResultOf{-2}, page_size, MADV_DONTNEED), Expected::success_or, -EINVAL),
              [&space](const Inquiry::Answer& answer) -> Status {
                space.lock_future = answer.result == -EINVAL;
                space.lock_future_on_fault &= space.lock_future;
                return {};
              });
  inquiry.ask(call(SYS_munmap, ResultOf{-3}, page_size), [](const Inquiry::Answer&) -> Status { return {}; });
}

class MemoryRoom final : public TaskRoom {
 public:
  std::string_view name() const override { return "memory"; }

  Status ask(CaptureContext& context, model::Task& task, Inquiry& inquiry) const override {
    auto& space = context.application.address_spaces[task.address_space];
    inquiry.ask(call(SYS_brk, 0), [&space](const Inquiry::Answer& answer) -> Status {
      space.layout.brk = static_cast<uint64_t>(answer.result);
      return {};
    });
    ask_about_locking(space, inquiry);
    return {};
  }

  Status encode(const model::Application& application, const model::Task& task,
                image::TaskRecords& records) const override {
    const auto space = application.address_spaces.find(task.address_space);
    if (space == application.address_spaces.end())
      return fail(Error::internal("save memory", "the address space is missing"));
    return encode_memory(application, space->second, records.mm);
  }

  Status decode(const image::TaskRecords& records, model::Application& application, model::Task& task) const override {
    auto& space = application.address_spaces[task.address_space];
    if (space.id == task.address_space && !space.mappings.empty()) return {};  // read through another task
    space.id = task.address_space;
    return decode_memory(records.mm, fmt::format("mm-{}.img", task.pid), application, space);
  }

  void validate(const model::Application& application, const model::Task& task,
                Diagnostics& diagnostics) const override;
};

/// ARCH_MAP_VDSO_64 maps data pages and code as this kernel lays them out: addresses inside must be the same.
void validate_vdso(const model::AddressSpace& space, const std::string& subject, Diagnostics& diagnostics) {
  VdsoShape theirs;
  for (const auto& mapping : space.mappings) {
    if (mapping.backing == model::Backing::vdso) theirs.code_size += mapping.range.size();
    if (mapping.backing == model::Backing::vvar) theirs.data_size += mapping.range.size();
  }
  const bool only_data = theirs.code_size == 0 && theirs.data_size == host().vdso.data_size;
  if (theirs == VdsoShape{} || theirs == host().vdso || only_data) return;
  diagnostics.refuse(subject, "its vDSO is laid out differently from this kernel's",
                     "Restore it on a kernel with the same vDSO");
}

/// Protection keys need the processor's help.
void validate_keys(const model::AddressSpace& space, const std::string& subject, Diagnostics& diagnostics) {
  if (std::ranges::none_of(space.mappings, [](const model::Mapping& mapping) { return mapping.protection_key > 0; }))
    return;
  if (host().has_protection_keys) return;
  diagnostics.refuse(subject, "it uses protection keys, which this processor or kernel does not have",
                     "Restore it on a machine with protection keys");
}

void MemoryRoom::validate(const model::Application& application, const model::Task& task,
                          Diagnostics& diagnostics) const {
  const auto space = application.address_spaces.find(task.address_space);
  if (space == application.address_spaces.end()) return;
  const auto subject = fmt::format("task {} '{}'", task.pid, task.name);
  validate_vdso(space->second, subject, diagnostics);
  validate_keys(space->second, subject, diagnostics);
}

}  // namespace

const TaskRoom& memory_room() {
  static const MemoryRoom room;
  return room;
}

}  // namespace stasis::resource
