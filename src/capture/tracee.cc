#include "capture/tracee.h"

#include <elf.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include "base/patience.h"
#include "capture/arch/x86_64/task_code.h"
#include "kernel/proc.h"
#include "kernel/signal_bit.h"

namespace stasis::capture {
namespace {

constexpr uint64_t options_always = PTRACE_O_TRACESYSGOOD;

std::string subject(pid_t tid) { return fmt::format("task {}", tid); }

bool stops(int signal) { return signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU; }

/// A traced thread keeps SIGCONT pending as long as it blocks it. It came after any stop signal that has been taken
/// from it: stop signals and SIGCONT remove each other from the queues (kernel/signal.c, prepare_signal).
bool is_to_continue(pid_t pid, pid_t tid) {
  const auto status = kernel::read_thread_status(pid, tid);
  return status && ((status->sig_pending | status->shared_pending) & kernel::signal_bit(SIGCONT)) != 0;
}

}  // namespace

Result<Tracee> Tracee::seize(pid_t pid, pid_t tid) {
  Tracee tracee(pid, tid);
  tracee.state_ = State::gone;  // nothing to undo until it is ours
  auto seized = kernel::ptrace_seize(tid, options_always | PTRACE_O_SUSPEND_SECCOMP);
  tracee.seccomp_suspended_ = seized.has_value();
  // Without CAP_SYS_ADMIN, under seccomp ourselves, or in a kernel without CONFIG_CHECKPOINT_RESTORE.
  if (!seized && (seized.error().errno_value() == EPERM || seized.error().errno_value() == EINVAL)) {
    seized = kernel::ptrace_seize(tid, options_always);
  }
  if (!seized) return fail(seized.error());
  tracee.state_ = State::running;
  return tracee;
}

Tracee::Tracee(Tracee&& other) noexcept
    : pid_(other.pid_),
      tid_(other.tid_),
      state_(std::exchange(other.state_, State::gone)),
      vanished_(other.vanished_),
      last_run_(other.last_run_),
      stop_(other.stop_),
      group_stop_signal_(other.group_stop_signal_),
      seccomp_suspended_(other.seccomp_suspended_),
      saved_(other.saved_),
      registers_changed_(other.registers_changed_),
      mask_changed_(other.mask_changed_),
      general_(std::move(other.general_)),
      signal_mask_(other.signal_mask_),
      kept_signals_(std::move(other.kept_signals_)) {}

Tracee& Tracee::operator=(Tracee&& other) noexcept {
  if (this == &other) return *this;
  std::destroy_at(this);
  return *std::construct_at(this, std::move(other));
}

Tracee::~Tracee() {
  // A thread that cannot be put back has died: there is nobody left to tell.
  if (alive()) (void)detach();
}

Status Tracee::interrupt() { return kernel::ptrace_interrupt(tid_); }

Status Tracee::ended(const kernel::WaitStatus& status) {
  state_ = State::gone;
  return fail(Error::gone("wait for a stop", fmt::format("{} ({})", subject(tid_), status.describe())));
}

Result<bool> Tracee::settle(const Waiting& waiting, Clock::time_point deadline) {
  for (;;) {
    const auto waited = waiting.wait(tid_, deadline);
    if (!waited && waited.error().code() == ErrorCode::gone) {
      state_ = State::gone;
      vanished_ = true;
      return true;
    }
    if (!waited) return fail(waited.error());
    if (waited->tid == 0) return false;
    stop_ = waited->status;
    if (!stop_.stopped()) {
      state_ = State::gone;
      return true;
    }
    if (stop_.ptrace_event() == PTRACE_EVENT_STOP) {
      state_ = State::stopped;
      group_stop_signal_ = stop_.is_group_stop() ? stop_.stop_signal() : 0;
      return true;
    }
    // A signal came first. It is delivered now, as it would have been; no instruction runs before the interrupt
    // takes hold, which any stop cancels and which is therefore asked for again.
    TRY(kernel::ptrace_interrupt(tid_));
    TRY(kernel::ptrace_continue(tid_, stop_.ptrace_event() != 0 || stop_.is_syscall_stop() ? 0 : stop_.stop_signal()));
  }
}

Status Tracee::follow_execve() {
  tid_ = pid_;
  state_ = State::running;
  vanished_ = false;
  // It may have stopped, and its stop been taken for the leader's, or run past the interrupt: another stop is asked
  // for. If it runs, it has nothing to continue from. The interrupt comes last: what it brings about must not be
  // continued from, unseen.
  if (auto status = kernel::ptrace_continue(tid_); !status && status.error().code() != ErrorCode::gone) return status;
  return kernel::ptrace_interrupt(tid_);
}

Status Tracee::let_go_on() {
  TRY(kernel::ptrace_continue(tid_));
  state_ = State::running;
  return {};
}

Status Tracee::save(uint64_t blocked) {
  general_ = TRY(kernel::ptrace_get_regset(tid_, NT_PRSTATUS));
  signal_mask_ = may_have_exchanged_mask(general_) ? TRY(kernel::ptrace_get_sigmask(tid_)) : blocked;
  saved_ = true;
  if (!is_native(general_)) return {};
  const Bytes found = general_;
  TRY(leave_restartable_sequence(tid_, general_));
  registers_changed_ = general_ != found;
  return {};
}

Result<Bytes> Tracee::registers() const { return kernel::ptrace_get_regset(tid_, NT_PRSTATUS); }

Status Tracee::set_registers(ByteView general) {
  registers_changed_ = true;
  return kernel::ptrace_set_regset(tid_, NT_PRSTATUS, general);
}

Status Tracee::set_signal_mask(uint64_t mask) {
  mask_changed_ = true;
  return kernel::ptrace_set_sigmask(tid_, mask);
}

Status Tracee::run(Run how) {
  last_run_ = how;
  TRY(how == Run::freely ? kernel::ptrace_continue(tid_) : kernel::ptrace_to_syscall(tid_));
  state_ = State::running;
  return {};
}

Status Tracee::next_stop(const Waiting& waiting, Clock::time_point deadline) {
  const auto waited = TRY(waiting.wait(tid_, deadline));
  if (waited.tid == 0) {
    return fail(Error::make(ErrorCode::conflict, "run the agent", "it did not come to its end in time", subject(tid_)));
  }
  stop_ = waited.status;
  if (!stop_.stopped()) return ended(stop_);
  state_ = State::stopped;
  return {};
}

Status Tracee::wait_for_system_call(const Waiting& waiting, Clock::time_point deadline) {
  for (;;) {
    TRY(next_stop(waiting, deadline));
    if (stop_.is_syscall_stop()) return {};
    TRY(pass_over());
  }
}

bool Tracee::at_delivery() const { return stopped() && !stop_.is_syscall_stop() && stop_.ptrace_event() == 0; }

/// On from a stop without a meaning for us.
Status Tracee::pass_over() {
  if (at_delivery()) keep_signal();
  return run(last_run_);
}

Status Tracee::wait_for_signal(const Waiting& waiting, int signal, Clock::time_point deadline) {
  if (at_delivery() && stop_.stop_signal() == signal) return {};
  for (;;) {
    TRY(next_stop(waiting, deadline));
    if (at_delivery() && stop_.stop_signal() == signal) return {};
    TRY(pass_over());
  }
}

Status Tracee::trace_births() {
  const uint64_t suspended = seccomp_suspended_ ? PTRACE_O_SUSPEND_SECCOMP : 0;
  return kernel::ptrace_set_options(tid_, options_always | suspended | PTRACE_O_TRACECLONE);
}

Result<pid_t> Tracee::wait_for_birth(const Waiting& waiting, int signal, Clock::time_point deadline) {
  for (;;) {
    TRY(next_stop(waiting, deadline));
    if (at_delivery() && stop_.stop_signal() == signal) return 0;
    if (stop_.ptrace_event() == PTRACE_EVENT_CLONE) {
      return static_cast<pid_t>(TRY(kernel::ptrace_get_event_message(tid_)));
    }
    TRY(pass_over());
  }
}

void Tracee::keep_signal() {
  if (auto info = kernel::ptrace_get_siginfo(tid_)) kept_signals_.push_back(std::move(*info));
}

/// A thread that runs our code, or did when something failed, is caught again.
Status Tracee::stop_again() {
  const Waiting waiting;
  TRY(interrupt());
  if (!TRY(settle(waiting, Clock::now() + patience))) {
    return fail(Error::conflict("stop the task again", "it does not stop", subject(tid_)));
  }
  if (!alive()) return fail(Error::gone("stop the task again", subject(tid_)));
  return {};
}

Status Tracee::put_back() {
  if (!alive()) return fail(Error::gone("put the task back", subject(tid_)));
  if (!saved_) return {};
  if (state_ == State::running && (registers_changed_ || mask_changed_)) TRY(stop_again());
  // The mask first: if we are killed in between, the registers still lead through code that restores both. With its own
  // registers and our mask the task would go on deaf.
  if (mask_changed_) TRY(kernel::ptrace_set_sigmask(tid_, signal_mask_));
  mask_changed_ = false;
  if (registers_changed_) TRY(kernel::ptrace_set_regset(tid_, NT_PRSTATUS, general_));
  registers_changed_ = false;
  return {};
}

uint64_t Tracee::send_kept_signals() {
  if (kept_signals_.empty()) return 0;
  const bool continues = is_to_continue(pid_, tid_);
  uint64_t sent = 0;
  for (const auto& bytes : std::exchange(kept_signals_, {})) {
    siginfo_t info;
    std::memcpy(&info, bytes.data(), sizeof info);
    // Sent now it would remove the SIGCONT that was to end its stop, and nobody would send another.
    if (continues && stops(info.si_signo)) continue;
    // The kernel lets nobody pretend to be the kernel or kill(2); then the bare signal has to do.
    if (syscall(SYS_rt_tgsigqueueinfo, pid_, tid_, info.si_signo, &info) != 0) {
      syscall(SYS_tgkill, pid_, tid_, info.si_signo);
    }
    sent |= kernel::signal_bit(info.si_signo);
  }
  return sent;
}

Status Tracee::detach() {
  if (!alive()) return {};
  const auto restored = put_back();
  if (alive() && state_ == State::running) {
    if (auto stopped = stop_again(); !stopped) {
      state_ = State::gone;
      return stopped;
    }
  }
  if (!alive()) return restored;
  send_kept_signals();
  const auto detached = kernel::ptrace_detach(tid_);
  state_ = State::gone;
  if (!restored) return restored;
  return detached;
}

bool Tracee::has_ended(bool reap) {
  if (alive() && has_ended(tid_, reap)) state_ = State::gone;
  return !alive();
}

bool Tracee::has_ended(pid_t tid, bool reap) {
  siginfo_t info{};
  const int how = WEXITED | WNOHANG | __WALL | (reap ? 0 : WNOWAIT);
  // No such child: somebody else has been told already.
  return waitid(P_PID, static_cast<id_t>(tid), &info, how) != 0 || info.si_pid != 0;
}

}  // namespace stasis::capture
