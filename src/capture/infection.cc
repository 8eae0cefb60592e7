#include "capture/infection.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include <fmt/format.h>

#include "base/parallel.h"
#include "base/patience.h"
#include "capture/arch/x86_64/task_code.h"
#include "kernel/process.h"
#include "kernel/signal_bit.h"

namespace stasis::capture {
namespace {

constexpr uint64_t all_signals = ~uint64_t{0};

/// A signal that the task would not notice if there were no tracer to catch it: ignored by default, and not caught. One
/// that is pending already would be merged with ours.
int choose_notify_signal(uint64_t unwelcome) {
  for (const int signal : {SIGURG, SIGWINCH, SIGCHLD}) {
    if ((unwelcome & kernel::signal_bit(signal)) == 0) return signal;
  }
  return 0;
}

}  // namespace

Infection::Infection(std::vector<Patient> patients, std::vector<Occupied> occupied, const AtPoint& at_point,
                     Clock::time_point deadline)
    : patients_(std::move(patients)), occupied_(std::move(occupied)), at_point_(&at_point), deadline_(deadline) {
  for (const auto& patient : patients_)
    notify_signals_.push_back(patient.at_call ? 0 : choose_notify_signal(patient.unwelcome_signals));
}

Infection::~Infection() {
  if (!patients_.empty()) clean_up();
}

bool Infection::can_run_freely(uint64_t unwelcome_signals) { return choose_notify_signal(unwelcome_signals) != 0; }

uint32_t Infection::add_child(agent::SlotProgram program) {
  children_.push_back(std::move(program));
  return static_cast<uint32_t>(patients_.size() + children_.size() - 1);
}

// ---- places and contents

Status Infection::choose_places() {
  stub_address_ = TRY(find_stub_place(tid(), occupied_));
  stub_call_ = stub_address_;
  stub_unmap_ = stub_address_ + make_stub(first().general(), 0, {}).unmap_entry;
  TRY(build_area());
  place_ = TRY(find_gap(occupied_, area_.size));
  return {};
}

Status Infection::build_area() {
  // Somebody else may still run in the area when one of several threads leaves it.
  const bool alone = patients_.size() == 1;
  TRY(parallel_for(patients_.size(), [&](size_t index) -> Status {
    auto& patient = patients_[index];
    const Bytes plain = plain_registers(patient.tracee->general(), Resumption::live, patient.handler);
    patient.program.set_leave_code(alone ? make_leave_code_through(plain, stub_unmap_)
                                         : make_leave_code(plain, patient.tracee->signal_mask()));
    patient.program.set_notify_signal(notify_signals_[index]);
    return {};
  }));
  std::vector<agent::SlotProgram> programs;
  programs.reserve(patients_.size() + children_.size());
  for (auto& patient : patients_) programs.push_back(std::move(patient.program));
  std::ranges::move(children_, std::back_inserter(programs));
  area_ = TRY(agent::build_area(0, std::move(programs), 0));
  return {};
}

Status Infection::plant_stub() {
  const auto& patient = patients_.front();
  const Bytes plain = plain_registers(first().general(), Resumption::live, patient.handler);
  const Stub stub = make_stub(plain, first().signal_mask(), place_);
  under_stub_.resize(stub.code.size());
  TRY(kernel::read_memory(tid(), RemoteAddress{stub_address_}, under_stub_));
  stub_planted_ = true;
  return kernel::write_memory(tid(), RemoteAddress{stub_address_}, stub.code);
}

Status Infection::remove_stub() {
  if (!stub_planted_) return {};
  TRY(kernel::write_memory(tid(), RemoteAddress{stub_address_}, under_stub_));
  stub_planted_ = false;
  return {};
}

/// New memory is zero already: pages without contents (stacks) are left out.
Status Infection::upload() {
  const ByteView bytes = area_.bytes;
  const auto is_empty = [&](uint64_t page) {
    const auto part = bytes.subspan(page, page_size);
    return part[0] == 0 && std::memcmp(part.data(), part.data() + 1, page_size - 1) == 0;
  };
  for (uint64_t page = 0; page < bytes.size();) {
    uint64_t end = page;
    while (end < bytes.size() && !is_empty(end)) end += page_size;
    if (end > page)
      TRY(kernel::write_own_memory(tid(), RemoteAddress{place_.begin + page}, bytes.subspan(page, end - page)));
    page = end + page_size;
  }
  return {};
}

// ---- in

Status Infection::start_mapping() {
  TRY(choose_places());
  at("infecting");
  TRY(plant_stub());
  at("stub-written");
  constexpr uint64_t protection = PROT_READ | PROT_WRITE | PROT_EXEC;
  constexpr uint64_t flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
  const Bytes registers = call_registers(first().general(), stub_call_, SYS_mmap,
                                         {place_.begin, place_.size(), protection, flags, ~uint64_t{0}, 0});
  TRY(first().set_registers(registers));
  at("stub-registers");
  TRY(first().set_signal_mask(all_signals));
  at("stub-mask");
  return first().run(Tracee::Run::to_system_call);
}

Status Infection::enter_mapping(const Waiting& waiting) {
  TRY(first().wait_for_system_call(waiting, deadline_));
  at("mapping-entered");
  return first().run(Tracee::Run::to_system_call);
}

Status Infection::start_agents(const Waiting& waiting) {
  TRY(first().wait_for_system_call(waiting, deadline_));
  const int64_t result = call_result(TRY(first().registers()));
  if (result != static_cast<int64_t>(place_.begin)) {
    return fail(
        Error::system("map the agent", result < 0 ? static_cast<int>(-result) : EEXIST, fmt::format("task {}", tid()))
            .advise("Limits of address space or locked memory, or a rule against executable memory, may forbid it"));
  }
  mapped_ = true;
  at("mapped");
  TRY(upload());
  at("uploaded");
  // The first thread goes first: until it does, it is the stub that it would run if we died, and that unmaps the area.
  for (size_t index = 0; index < patients_.size(); ++index) TRY(start_agent(index));
  at("agent-running");
  return {};
}

Status Infection::start_agent(size_t index) {
  auto& tracee = *patients_[index].tracee;
  const uint64_t stack = place_.begin + area_.slots[index].stack_top;
  TRY(tracee.set_registers(agent_registers(tracee.general(), place_.begin, index, stack)));
  at("agent-registers");
  const int signal = notify_signals_[index];
  TRY(tracee.set_signal_mask(signal != 0 ? all_signals & ~kernel::signal_bit(signal) : all_signals));
  at("agent-mask");
  return tracee.run(signal != 0 ? Tracee::Run::freely : Tracee::Run::to_system_call);
}

// ---- the end of the agents

namespace {

/// Also one that has failed says its last word.
bool has_ended(const agent::Slot& slot) { return slot.state == agent::slot_done || slot.state == agent::slot_failed; }

bool has_ended(const agent::Area& area, ByteView bytes, size_t index) {
  agent::Slot slot;
  std::memcpy(&slot, bytes.data() + area.slots[index].slot, sizeof slot);
  return has_ended(slot);
}

}  // namespace

Result<agent::Slot> Infection::live_slot(size_t index) {
  agent::Slot slot;
  TRY(kernel::read_memory(tid(), RemoteAddress{place_.begin + area_.slots[index].slot},
                          {reinterpret_cast<uint8_t*>(&slot), sizeof slot}));
  return slot;
}

Result<pid_t> Infection::await_birth(const Waiting& waiting) {
  for (;;) {
    const pid_t child = TRY(first().wait_for_birth(waiting, notify_signals_.front(), deadline_));
    if (child != 0 || has_ended(TRY(live_slot(0)))) return child;
    first().keep_signal();  // somebody else's
    TRY(first().run(Tracee::Run::freely));
  }
}

Status Infection::collect_answers(const Waiting& waiting) {
  for (size_t index = 0; index < patients_.size(); ++index) TRY(wait_for_agent(index, waiting));
  answers_.resize(area_.bytes.size());
  TRY(kernel::read_memory(tid(), RemoteAddress{place_.begin}, answers_));
  for (size_t index = 0; index < patients_.size(); ++index) {
    while (!has_ended(area_, answers_, index)) {
      // Somebody else's signal of the same number: it is kept, and the agent goes on.
      patients_[index].tracee->keep_signal();
      TRY(patients_[index].tracee->run(Tracee::Run::freely));
      TRY(wait_for_agent(index, waiting));
      TRY(kernel::read_memory(tid(), RemoteAddress{place_.begin}, answers_));
    }
  }
  at("agent-done");
  for (size_t index = 1; index < patients_.size(); ++index) TRY(patients_[index].tracee->put_back());
  at("threads-back");
  return start_unmapping();
}

Status Infection::wait_for_agent(size_t index, const Waiting& waiting) {
  auto& tracee = *patients_[index].tracee;
  if (notify_signals_[index] != 0) return tracee.wait_for_signal(waiting, notify_signals_[index], deadline_);
  // No signal to spare, or somebody wants to see the calls: the agent is followed from one to the next, until it is
  // done and about to leave.
  for (;;) {
    TRY(tracee.wait_for_system_call(waiting, deadline_));
    const auto slot = TRY(live_slot(index));
    const auto registers = TRY(tracee.registers());
    if (has_ended(slot) && is_leaving(registers)) break;
    if (patients_[index].at_call) patients_[index].at_call(call_number(registers), call_result(registers));
    TRY(tracee.run(Tracee::Run::to_system_call));
  }
  // The call that has been entered is not made.
  const auto registers = TRY(tracee.registers());
  TRY(tracee.set_signal_mask(tracee.signal_mask()));
  TRY(tracee.set_registers(registers_at(registers, program_counter(registers))));
  TRY(tracee.run(Tracee::Run::to_system_call));
  return tracee.wait_for_system_call(waiting, deadline_);
}

// ---- out

Status Infection::start_unmapping() {
  TRY(first().set_registers(registers_at(first().general(), stub_unmap_)));
  at("unmap-registers");
  TRY(first().set_signal_mask(all_signals));
  at("unmap-mask");
  return first().run(Tracee::Run::to_system_call);
}

Status Infection::enter_unmapping(const Waiting& waiting) {
  TRY(first().wait_for_system_call(waiting, deadline_));
  at("unmapping");
  return first().run(Tracee::Run::to_system_call);
}

Status Infection::finish(const Waiting& waiting) {
  TRY(first().wait_for_system_call(waiting, deadline_));
  const int64_t result = call_result(TRY(first().registers()));
  if (result != 0)
    return fail(Error::system("unmap the agent", static_cast<int>(-result), fmt::format("task {}", tid())));
  mapped_ = false;
  at("unmapped");
  TRY(first().put_back());
  at("registers-back");
  TRY(remove_stub());
  at("disinfected");
  return {};
}

/// After an error: what can still be undone is undone. Threads that have died need nothing.
void Infection::clean_up() {
  const Waiting waiting;
  deadline_ = Clock::now() + patience;
  bool all_back = true;
  for (auto& patient : patients_) {
    const auto back = patient.tracee->put_back();
    all_back = all_back && (back || back.error().code() == ErrorCode::gone);
  }
  if (!all_back || !first().alive()) return;
  if (mapped_ && start_unmapping() && enter_unmapping(waiting)) (void)finish(waiting);
  if (first().put_back()) (void)remove_stub();
}

Status run_all(std::vector<Infection>& infections, const Waiting& waiting) {
  for (auto& infection : infections) TRY(infection.start_mapping());
  for (auto& infection : infections) TRY(infection.enter_mapping(waiting));
  for (auto& infection : infections) TRY(infection.start_agents(waiting));
  for (auto& infection : infections) TRY(infection.collect_answers(waiting));
  for (auto& infection : infections) TRY(infection.enter_unmapping(waiting));
  for (auto& infection : infections) TRY(infection.finish(waiting));
  return {};
}

}  // namespace stasis::capture
