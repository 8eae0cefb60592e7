#include "capture/interview.h"

#include <fmt/format.h>

namespace stasis::capture {
namespace {

using plan::Expectation;

bool is_expected(const Expectation& expect, int64_t result) {
  const bool success = result < -4095 || result >= 0;
  switch (expect.kind) {
    case Expectation::Kind::anything:
      return true;
    case Expectation::Kind::success:
      return success;
    case Expectation::Kind::exactly:
      return result == expect.value;
    case Expectation::Kind::success_or:
      return success || result == expect.value;
  }
  return false;
}

}  // namespace

Status Interview::hold(std::span<const resource::TaskRoom* const> rooms) {
  TRY(prepare(rooms));
  if (asked_.empty()) return {};
  TRY(run());
  for (const auto& asked : asked_) TRY(answer(asked));
  return {};
}

Status Interview::prepare(std::span<const resource::TaskRoom* const> rooms) {
  for (auto& process : processes_) {
    if (process.frozen.zombie) continue;
    auto& task = *context_.application.find(process.pid);
    const size_t first = task.leader_has_ended() ? 1 : 0;
    for (size_t index = first; index < task.threads.size(); ++index) {
      resource::Inquiry inquiry;
      for (const auto* room : rooms) {
        if (index == first) TRY(room->ask(context_, task, inquiry));
        TRY(room->ask(context_, task, task.threads[index], inquiry));
      }
      TRY(prepare_thread(process, task, index, std::move(inquiry)));
    }
  }
  return {};
}

Status Interview::prepare_thread(LiveProcess& process, model::Task& task, size_t index, resource::Inquiry inquiry) {
  if (inquiry.questions().empty()) return {};
  auto& tracee = process.tracee(index);
  const auto& status = *TRY(process.view.status(index));
  Patient patient;
  patient.tracee = &tracee;
  patient.handler = waiting_handler(status, tracee.signal_mask());
  patient.unwelcome_signals = unwelcome_signals(status);
  for (const auto& question : inquiry.questions()) {
    // Judged here, with the name of the call at hand; and one refused question must not silence the rest.
    patient.program.call(plan::expecting(question.call, Expectation::Kind::anything), 0);
  }
  const auto [space, fresh] = space_of_.emplace(task.address_space, spaces_.size());
  if (fresh) spaces_.push_back({task.address_space, {}});
  auto& together = spaces_[space->second].patients;
  asked_.push_back({&process, tracee.tid(), inquiry.questions(), space->second, together.size()});
  together.push_back(std::move(patient));
  return {};
}

/// The address space as it has been captured already, if it has.
Result<std::vector<Occupied>> Interview::occupied(ObjectId address_space, const Patient& patient) const {
  const auto known = context_.application.address_spaces.find(address_space);
  if (known != context_.application.address_spaces.end()) return occupied_by(known->second);
  return occupied_by(TRY(kernel::read_maps(patient.tracee->tid())));
}

/// Each step is taken in all address spaces before the next, so that the tasks' answers overlap.
Status Interview::run() {
  const Waiting waiting;
  infections_.reserve(spaces_.size());
  for (auto& space : spaces_) {
    auto taken = TRY(occupied(space.id, space.patients.front()));
    infections_.emplace_back(std::move(space.patients), std::move(taken), at_point_, deadline_);
  }
  return run_all(infections_, waiting);
}

Status Interview::answer(const Asked& asked) {
  const auto& infection = infections_[asked.infection];
  for (uint32_t index = 0; index < asked.questions.size(); ++index) {
    const auto& question = asked.questions[index];
    resource::Inquiry::Answer answer;
    answer.result = agent::result_of(infection.area(), infection.answers(), static_cast<uint32_t>(asked.slot), index);
    answer.out = agent::outs_of(infection.area(), infection.answers(), static_cast<uint32_t>(asked.slot), index);
    if (!is_expected(question.call.expect, answer.result)) {
      const int error = answer.result < 0 ? static_cast<int>(-answer.result) : 0;
      return fail(Error::system(fmt::format("ask the task by {}", plan::call_name(question.call.number)), error,
                                fmt::format("{}, thread {}", subject_of(*asked.process), asked.host_tid)));
    }
    TRY(question.handler(answer));
  }
  return {};
}

}  // namespace stasis::capture
