#include "capture/twins.h"

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <mutex>
#include <set>

#include <fmt/format.h>

#include "base/parallel.h"
#include "capture/infection.h"
#include "memory/instant_pages.h"
#include "resource/memory_runs.h"

namespace stasis::capture {
namespace {

/// A twin that has been born. Ended by any path, and told of to its parent, which reaps it.
class Newborn {
 public:
  explicit Newborn(pid_t pid) : pid_(pid) {}
  Newborn(const Newborn&) = delete;
  Newborn& operator=(const Newborn&) = delete;
  ~Newborn() {
    kill(pid_, SIGKILL);  // it is our tracee: nobody else can have got its number
    for (;;) {
      const auto waited = kernel::wait_for(pid_);
      if (!waited || !waited->status.stopped()) return;
    }
  }

 private:
  pid_t pid_;
};

std::vector<AddressRange> ranges_of(std::span<const model::PageRun> runs) {
  std::vector<AddressRange> ranges;
  for (const auto& run : runs) ranges.push_back(run.range);
  return ranges;
}

bool is_copied_by_fork(const model::Mapping& mapping) {
  const bool advised = mapping.advice.contains(MADV_DONTFORK) || mapping.advice.contains(MADV_WIPEONFORK);
  return !advised && mapping.backing != model::Backing::vdso;
}

}  // namespace

Result<SnapshotReport> TwinMaker::make(uint64_t limit, uint64_t twin_from) {
  auto spaces = find_spaces();
  const auto large = std::ranges::partition(spaces, [&](const Space& space) { return space.size < twin_from; });
  const std::span<Space> small(spaces.begin(), large.begin());
  for (Space& space : small) space.obstacle = find_room(space.size, limit);
  TRY(copy_whole(small));
  const Status possible = large.empty() ? Status() : memory::HeldMemory::is_possible();
  for (Space& space : large) {
    space.obstacle = possible ? obstacle_to_twin(space, limit) : possible.error().message();
    if (space.obstacle.empty()) TRY(make_twin(space));
  }
  at_point_("twins");
  for (const Space& space : spaces) {
    if (space.obstacle.empty()) continue;
    ++report_.stopped;
    report_.notes.note(subject_of(*space.process),
                       fmt::format("is stopped until its memory has been written: {}", space.obstacle));
  }
  return std::move(report_);
}

std::vector<TwinMaker::Space> TwinMaker::find_spaces() {
  std::vector<Space> spaces;
  std::set<ObjectId> known;
  for (auto& process : processes_) {
    if (process.frozen.threads.empty()) continue;
    const auto id = context_.application.find(process.pid)->address_space;
    if (!known.insert(id).second) continue;
    Space space{id, &process, 0, {}, {}};
    const auto& model = model_of(space);
    space.size = memory::total_size(model.pages);
    for (const auto& mapping : model.mappings) {
      if (is_copied_by_fork(mapping)) continue;
      for (const auto& run : resource::runs_within(model.pages, mapping.range)) space.beside.push_back(run.range);
    }
    spaces.push_back(std::move(space));
  }
  return spaces;
}

/// Takes it from what there is; or says why not.
std::string TwinMaker::find_room(uint64_t bytes, uint64_t limit) {
  if (bytes > limit - report_.taken) return "a snapshot of it would take too much memory (--snapshot-memory-limit)";
  report_.taken += bytes;
  return {};
}

std::string TwinMaker::obstacle_to_twin(const Space& space, uint64_t limit) {
  const auto& process = *space.process;
  const auto status = process.view.witness_status();
  const auto facts = process.view.facts();
  if (!status || !facts) return (status ? facts.error() : status.error()).message();
  if (std::ranges::any_of((*facts)->mappings,
                          [](const auto& vma) { return !vma.shared && vma.vm_flags.contains("ht"); })) {
    // Who writes to a huge page that is shared needs another: where none is left, a task that was born by fork itself
    // gets SIGBUS (mm/hugetlb.c, hugetlb_wp).
    return "it has private pages of hugetlbfs, of which there may be no second ones";
  }
  if ((*status)->seccomp != 0 && !process.frozen.threads.front().seccomp_suspended())
    return "its seccomp filter cannot be suspended, and may not like a fork";
  const auto* task = context_.application.find(process.pid);
  if (task != nullptr && task->childrens_namespace() == model::empty_namespace)
    return "its next child would begin a pid namespace, and end it";
  if (!Infection::can_run_freely(unwelcome_signals(**status)))
    return "it waits for every signal that could tell us of its fork";
  constexpr uint64_t described_by_byte = 512;  // of a page table
  return find_room(memory::total_size(space.beside) + space.size / described_by_byte, limit);
}

Status TwinMaker::copy_whole(std::span<Space> small) {
  std::mutex mutex;
  return parallel_for(small.size(), [&](size_t index) -> Status {
    const Space& space = small[index];
    if (!space.obstacle.empty()) return {};
    auto copied = TRY(memory::CopiedPages::copy(space.process->view.witness(), ranges_of(model_of(space).pages)));
    const std::lock_guard lock(mutex);
    report_.copied_small += copied.size();
    memory_.keep(space.id, std::make_unique<memory::InstantPages>(std::move(copied), nullptr));
    return {};
  });
}

/// What stands in the way of a twin is noted in the space.
Status TwinMaker::make_twin(Space& space) {
  auto beside = TRY(memory::CopiedPages::copy(space.process->view.witness(), space.beside));
  auto held = fork(space);
  if (held) {
    if (auto readable = try_to_read(space, **held); !readable) held = fail(std::move(readable).error());
  }
  if (!held) {
    if (held.error().code() == ErrorCode::gone) return fail(std::move(held).error());
    space.obstacle = held.error().message();
    return {};
  }
  ++report_.twins;
  report_.copied_beside += beside.size();
  const auto& process = *space.process;
  twins_.push_back({process.view.host_pid, process.stat.start_time, *held, model_of(space).pages});
  memory_.keep(space.id, std::make_unique<memory::InstantPages>(std::move(beside), std::move(*held)));
  at_point_("twin");
  return {};
}

Result<std::shared_ptr<memory::HeldMemory>> TwinMaker::fork(Space& space) {
  auto& tracee = space.process->frozen.threads.front();
  const auto& status = *TRY(space.process->view.witness_status());
  Patient patient;
  patient.tracee = &tracee;
  patient.handler = waiting_handler(status, tracee.signal_mask());
  patient.unwelcome_signals = unwelcome_signals(status);
  constexpr uint32_t slot_of_twin = 1;
  patient.program.spawn(CLONE_FILES | CLONE_FS, 0, {}, slot_of_twin, 0);
  patient.program.call(plan::call(SYS_wait4, plan::ResultOf{-1}, 0, __WALL, 0), 0);
  agent::SlotProgram twin(agent::EndMode::exit_thread, 0);
  twin.exit(0, 0, 0);

  std::vector<Patient> patients;
  patients.push_back(std::move(patient));
  const Waiting waiting;
  Infection infection(std::move(patients), occupied_by(model_of(space)), at_point_, deadline_);
  infection.add_child(std::move(twin));
  TRY(tracee.trace_births());
  TRY(infection.start_mapping());
  TRY(infection.enter_mapping(waiting));
  TRY(infection.start_agents(waiting));
  Result<std::shared_ptr<memory::HeldMemory>> held;
  const pid_t child = TRY(infection.await_birth(waiting));
  if (child != 0) {
    const Newborn newborn(child);
    at_point_("twin-born");
    held = memory::HeldMemory::hold(child, RemoteAddress{infection.place().begin});
    at_point_("twin-held");
  }
  if (child != 0) TRY(tracee.run(Tracee::Run::freely));
  TRY(infection.collect_answers(waiting));
  TRY(infection.enter_unmapping(waiting));
  TRY(infection.finish(waiting));
  if (child == 0) {
    const int64_t result = agent::result_of(infection.area(), infection.answers(), 0, 0);
    return fail(Error::system("fork it", static_cast<int>(-result)));
  }
  return held;
}

/// Whether the kernel lets us read it, also where the task itself may not (proc_mem.force_override).
Status TwinMaker::try_to_read(const Space& space, const memory::HeldMemory& held) const {
  const auto& model = model_of(space);
  for (const auto& mapping : model.mappings) {
    if ((mapping.protection & PROT_READ) != 0 || !is_copied_by_fork(mapping)) continue;
    const auto runs = resource::runs_within(model.pages, mapping.range);
    if (runs.empty()) continue;
    uint8_t byte = 0;
    TRY(held.read(runs.front().range.begin, {&byte, 1}));
  }
  return {};
}

}  // namespace stasis::capture
