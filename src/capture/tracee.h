// One thread under our control, and what must be put back before it is let go.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "capture/waiting.h"
#include "kernel/ptrace.h"

namespace stasis::capture {

/// A seized thread. Destroyed by any path it goes on as it was: registers and signal mask put back, signals that came
/// meanwhile sent again, detached.
class Tracee {
 public:
  /// PTRACE_SEIZE; the thread still runs.
  static Result<Tracee> seize(pid_t pid, pid_t tid);
  Tracee(Tracee&& other) noexcept;
  Tracee& operator=(Tracee&& other) noexcept;
  ~Tracee();

  pid_t pid() const { return pid_; }
  pid_t tid() const { return tid_; }
  bool alive() const { return state_ != State::gone; }
  bool stopped() const { return state_ == State::stopped; }
  /// The stop signal of a group-stop the thread was found in; 0: none.
  int group_stop_signal() const { return group_stop_signal_; }
  /// Whether seccomp is suspended while we trace (it needs CAP_SYS_ADMIN).
  bool seccomp_suspended() const { return seccomp_suspended_; }

  /// Whether its id was found to be nobody's. A thread that calls execve ends all others, takes the leader's id and
  /// leaves its own without a word (fs/exec.c, de_thread).
  bool has_executed() const { return vanished_ && tid_ != pid_; }
  /// Goes on with such a thread under the leader's id; it must be settled anew.
  Status follow_execve();

  /// Forgets a leader that has ended: it can be neither stopped nor let go.
  void give_up() { state_ = State::gone; }

  Status interrupt();
  /// Looks for the stop that PTRACE_INTERRUPT asked for; true: it has come (or the thread has died).
  Result<bool> settle(const Waiting&, Clock::time_point deadline);
  /// Lets a settled thread run again, for a neighbour's sake; it must be interrupted and settled anew.
  Status let_go_on();

  /// The state to be put back, read once after the thread has settled. Leaves restartable sequences. `blocked`: as
  /// /proc/PID/status shows it.
  Status save(uint64_t blocked);
  const Bytes& general() const { return general_; }
  uint64_t signal_mask() const { return signal_mask_; }

  Result<Bytes> registers() const;
  Status set_registers(ByteView general);
  Status set_signal_mask(uint64_t mask);
  enum class Run { freely, to_system_call };
  Status run(Run);
  /// The next stop of the given kind. Stops without a meaning for us are passed over; signals other than the wanted one
  /// are kept for later.
  Status wait_for_system_call(const Waiting&, Clock::time_point deadline);
  /// A thread that is stopped by it already has nothing to wait for.
  Status wait_for_signal(const Waiting&, int signal, Clock::time_point deadline);
  /// Children that the thread makes by clone(2) with another exit signal than SIGCHLD are ours from their birth on, and
  /// born stopped. Until it is let go.
  Status trace_births();
  /// The next birth: the child's pid as we see it; the thread is stopped in it. 0: the signal came first.
  Result<pid_t> wait_for_birth(const Waiting&, int signal, Clock::time_point deadline);
  /// Keeps the signal of the present stop, to be sent again when the thread is let go.
  void keep_signal();
  /// They are pending again, for a thread that is stopped: which. Bit 0 is signal 1.
  uint64_t send_kept_signals();

  /// Registers and signal mask as save() found them.
  Status put_back();
  /// For threads that are to stay stopped or die: gives up without touching them any more.
  Status detach();
  /// Whether a killed thread has ended, without waiting. `reap`: false for a leader that is our own child, whose status
  /// its owner wants.
  bool has_ended(bool reap);
  /// The same of a thread that need not be ours.
  static bool has_ended(pid_t tid, bool reap);

 private:
  enum class State { running, stopped, gone };
  Tracee(pid_t pid, pid_t tid) : pid_(pid), tid_(tid) {}
  Status ended(const kernel::WaitStatus&);
  Status next_stop(const Waiting&, Clock::time_point deadline);
  bool at_delivery() const;
  Status pass_over();
  Status stop_again();

  pid_t pid_ = 0, tid_ = 0;
  State state_ = State::running;
  bool vanished_ = false;  ///< gone, and no status said so
  Run last_run_ = Run::freely;
  kernel::WaitStatus stop_;
  int group_stop_signal_ = 0;
  bool seccomp_suspended_ = false;
  bool saved_ = false, registers_changed_ = false, mask_changed_ = false;
  Bytes general_;
  uint64_t signal_mask_ = 0;
  std::vector<Bytes> kept_signals_;
};

}  // namespace stasis::capture
