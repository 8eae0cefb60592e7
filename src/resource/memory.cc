// mm_entry ↔ address space. CRIU tells kinds of mappings by bits of vma_entry.status; what its format has no words for
// (keys, seals, names, MLOCK_ONFAULT) stands in fields of ours, which it skips.
//
// brk(0) answers exactly where the heap ends; everything else of an address space is seen from outside
// (resource/address_space.h). MCL_FUTURE is visible to nobody: it is recognised by what it does to a new mapping.
#include "resource/memory.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>

#include "kernel/proc.h"
#include "resource/host.h"
#include "resource/memory_record.h"

namespace stasis::resource {
namespace {

using plan::call;
using plan::expecting;
using plan::ResultOf;
using Expected = plan::Expectation::Kind;

/// The VMA that is there only because of us tells whether new mappings are locked on fault.
Status look_at_our_own_mapping(pid_t witness, model::AddressSpace& space) {
  for (const auto& vma : TRY(kernel::read_smaps(witness))) {
    const bool known = std::ranges::any_of(
        space.mappings, [&](const model::Mapping& mapping) { return mapping.range.overlaps(vma.range); });
    if (known || !vma.vm_flags.contains("lo")) continue;
    space.lock_future = true;
    space.lock_future_on_fault = vma.vm_flags.contains("lf");
  }
  return {};
}

/// A page that is there although nobody has touched it was locked when it was mapped.
void ask_about_locking(model::AddressSpace& space, std::function<pid_t()> witness, Inquiry& inquiry) {
  const uint32_t flags = MAP_PRIVATE | MAP_ANONYMOUS;
  inquiry.ask(expecting(call(SYS_mmap, 0, page_size, PROT_READ | PROT_WRITE, flags, -1, 0), Expected::anything),
              [](const Inquiry::Answer&) -> Status { return {}; });
  inquiry.ask(expecting(call(SYS_mincore, ResultOf{-1}, page_size, plan::Out{1}), Expected::anything),
              [&space](const Inquiry::Answer& answer) -> Status {
                if (answer.result == 0 && !answer.out.empty() && !answer.out[0].empty())
                  space.lock_future = (answer.out[0][0] & 1) != 0;
                return {};
              });
  inquiry.ask(expecting(call(SYS_munmap, ResultOf{-2}, page_size), Expected::anything),
              [&space, witness = std::move(witness)](const Inquiry::Answer&) -> Status {
                const bool on_fault = std::ranges::any_of(space.mappings, &model::Mapping::locked_on_fault);
                return on_fault && !space.lock_future ? look_at_our_own_mapping(witness(), space) : Status{};
              });
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
    ask_about_locking(space, [&context, &task] { return context.witness(task); }, inquiry);
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
