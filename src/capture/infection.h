// The agent in an address space: mapped, run in every thread that uses it, removed without a trace.
//
// At no moment does a thread have registers that do not lead back to its own life (see arch/…/task_code.h). If stasis
// dies the kernel detaches it from its tracees, and each of them goes on with what it has:
//
//   stopped, untouched        the interrupted system call is restarted by the kernel
//   about to run the stub     mmap, munmap, own mask, own registers
//   about to run the agent    harmless questions, own mask, own registers; the only thread of an address space unmaps
//   it too being unmapped            own mask, own registers
//
// What may stay behind in that case is the stub in unused bytes, and with several threads the agent's mapping.
// A limit: a thread under seccomp is watched by its filter again as soon as there is no tracer.
//
// The steps are separate so that a caller can take each step for all address spaces before the next: stops of
// different tasks then overlap.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "agent/area.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "capture/arch/x86_64/task_code.h"
#include "capture/freezer.h"
#include "capture/places.h"
#include "capture/tracee.h"
#include "kernel/proc.h"

namespace stasis::capture {

/// Signals that must not be an agent's last word.
inline uint64_t unwelcome_signals(const kernel::StatusInfo& status) {
  return status.caught | status.sig_pending | status.shared_pending;
}

/// One thread and the questions it answers.
struct Patient {
  Tracee* tracee = nullptr;
  Handler handler = Handler::none;
  uint64_t unwelcome_signals = 0;  ///< caught or pending: not to be used as the agent's last word. Bit 0 is signal 1
  agent::SlotProgram program{agent::EndMode::notify_then_leave, stack_size};
  /// If set, the agent is followed from call to call: called with number and result as each begins (-ENOSYS) and ends.
  std::function<void(uint64_t number, int64_t result)> at_call;

  static constexpr uint64_t stack_size = 2048;
};

class Infection {
 public:
  /// `patients` are all threads that share the address space; the first one maps and unmaps.
  Infection(std::vector<Patient> patients, std::vector<Occupied> occupied, const AtPoint& at_point,
            Clock::time_point deadline);
  Infection(Infection&&) = default;
  Infection& operator=(Infection&&) = delete;
  /// By any path: threads back to where they were, the area unmapped, the stub removed.
  ~Infection();

  /// Whether an agent's end can be seen without following it from call to call.
  static bool can_run_freely(uint64_t unwelcome_signals);
  /// Before the first step: the program of a child that a patient's program spawns. Its slot.
  uint32_t add_child(agent::SlotProgram program);

  // -- in this order; each waits for what the previous one has started
  Status start_mapping();
  Status enter_mapping(const Waiting&);
  Status start_agents(const Waiting&);
  /// The first patient's program makes a child: its pid as we see it. The patient is stopped in that moment, and run()
  /// lets it go on. 0: there was no birth, and the agent has ended.
  Result<pid_t> await_birth(const Waiting&);
  Status collect_answers(const Waiting&);
  Status enter_unmapping(const Waiting&);
  Status finish(const Waiting&);

  const agent::Area& area() const { return area_; }
  AddressRange place() const { return place_; }
  /// The bytes of the area after all agents have ended.
  ByteView answers() const { return answers_; }
  /// By slot, which is the index of the patient.
  const std::vector<Patient>& patients() const { return patients_; }

 private:
  Status plant_stub();
  Status remove_stub();
  Status choose_places();
  Status build_area();
  Status upload();
  Status start_agent(size_t index);
  Status wait_for_agent(size_t index, const Waiting&);
  Result<agent::Slot> live_slot(size_t index);
  Status start_unmapping();
  void clean_up();
  /// Through whom the address space is reached: the leader may have ended.
  pid_t tid() const { return patients_.front().tracee->tid(); }
  Tracee& first() { return *patients_.front().tracee; }
  void at(std::string_view point) const {
    if (*at_point_) (*at_point_)(point);
  }

  std::vector<Patient> patients_;
  std::vector<agent::SlotProgram> children_;
  std::vector<Occupied> occupied_;
  const AtPoint* at_point_;
  Clock::time_point deadline_;
  std::vector<int> notify_signals_;  ///< per patient; 0: none could be found
  AddressRange place_;               ///< of the area
  uint64_t stub_address_ = 0;
  uint64_t stub_call_ = 0, stub_unmap_ = 0;
  Bytes under_stub_;  ///< what the stub overwrote
  bool stub_planted_ = false, mapped_ = false;
  agent::Area area_;
  Bytes answers_;
};

/// All steps, each for all address spaces before the next.
Status run_all(std::vector<Infection>&, const Waiting&);

}  // namespace stasis::capture
