#include "capture/trackers.h"

#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>

#include "capture/infection.h"
#include "kernel/process.h"

namespace stasis::capture {
namespace {

/// The conversation with one address space.
struct Making {
  ObjectId space;
  LiveProcess* process = nullptr;
  UniqueFd descriptor;
  int64_t result = 0;  ///< of the call
};

Status take(Making& making, pid_t tid, uint64_t number, int64_t result) {
  if (number != static_cast<uint64_t>(kernel::userfaultfd_call) || result == -ENOSYS)
    return {};  // how calls begin, too
  making.result = result;
  if (result < 0 || making.descriptor.valid()) return {};
  const auto task = TRY(kernel::pidfd_open_thread(tid));
  making.descriptor = TRY_IN("take the task's userfaultfd", kernel::pidfd_getfd(task.get(), static_cast<int>(result)));
  return {};
}

Patient patient_of(Making& making) {
  auto& tracee = making.process->tracee(making.process->view.leader_ended ? 1 : 0);
  Patient patient;
  patient.tracee = &tracee;
  using Expected = plan::Expectation::Kind;
  patient.program.call(
      plan::expecting(plan::call(kernel::userfaultfd_call, kernel::userfaultfd_flags), Expected::anything), 0);
  patient.program.call(plan::expecting(plan::call(SYS_close, plan::ResultOf{-1}), Expected::anything), 0);
  patient.at_call = [&making, tid = tracee.tid()](uint64_t number, int64_t result) {
    return take(making, tid, number, result);
  };
  return patient;
}

std::unexpected<Error> cannot_make(const Making& making) {
  const int error = making.result < 0 ? static_cast<int>(-making.result) : ENOSYS;
  return fail(Error::system("make a userfaultfd in the task", error, subject_of(*making.process))
                  .advise("a full descriptor table, or a kernel without userfaultfd, may forbid it: `stasis check`"));
}

}  // namespace

Result<std::map<ObjectId, kernel::Userfaultfd>> make_userfaultfds(std::vector<LiveProcess>& processes,
                                                                  const model::Application& application,
                                                                  const std::vector<ObjectId>& address_spaces,
                                                                  const AtPoint& at_point, Clock::time_point deadline) {
  std::vector<Making> makings;
  for (const ObjectId space : address_spaces) {
    const auto owner = std::ranges::find_if(processes, [&](const LiveProcess& process) {
      return !process.frozen.zombie && application.find(process.pid)->address_space == space;
    });
    if (owner == processes.end()) return fail(Error::internal("track memory", "an address space has no task"));
    makings.push_back({space, &*owner, {}, 0});
  }
  const Waiting waiting;
  std::vector<Infection> infections;
  infections.reserve(makings.size());
  for (Making& making : makings) {
    auto maps = occupied_by(TRY(kernel::read_maps(making.process->view.witness())));
    std::vector<Patient> patients;
    patients.push_back(patient_of(making));
    infections.emplace_back(std::move(patients), std::move(maps), at_point, deadline);
  }
  TRY(run_all(infections, waiting));
  std::map<ObjectId, kernel::Userfaultfd> made;
  for (Making& making : makings) {
    if (!making.descriptor.valid()) return cannot_make(making);
    kernel::Userfaultfd tracker(std::move(making.descriptor));
    TRY_IN(subject_of(*making.process), tracker.begin_tracking());
    made.emplace(making.space, std::move(tracker));
  }
  return made;
}

}  // namespace stasis::capture
