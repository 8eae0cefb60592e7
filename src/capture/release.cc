#include "capture/release.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/format.h>

#include "kernel/proc.h"
#include "kernel/process.h"

namespace stasis::capture {
namespace {

constexpr auto patience = std::chrono::seconds(5);
/// How long to wait for somebody else's init to reap orphans: it is not ours to insist.
constexpr auto patience_with_init = std::chrono::milliseconds(500);

/// The first real error of many steps that are all taken.
class FirstError {
 public:
  void note(Status status) {
    if (!status && status.error().code() != ErrorCode::gone && result_) result_ = std::move(status);
  }
  Status take() { return std::move(result_); }

 private:
  Status result_;
};

template <typename Condition>
bool poll_until(Clock::time_point deadline, Condition condition) {
  for (unsigned pause_us = 20; !condition(); pause_us = pause_us < 1000 ? pause_us * 2 : pause_us) {
    if (Clock::now() >= deadline) return false;
    usleep(pause_us);
  }
  return true;
}

Status let_run(std::vector<LiveProcess>& processes) {
  FirstError error;
  for (auto& process : processes) {
    for (auto& thread : process.frozen.threads) error.note(thread.detach());
  }
  return error.take();
}

bool is_stopped(pid_t pid) {
  const auto stat = kernel::read_stat(pid);
  return !stat || stat->state == 'T' || stat->state == 'Z' || stat->state == 'X';
}

/// Every thread has a SIGSTOP of its own in its queue before it runs again, so that none executes an instruction. SIGCONT
/// discards those that are left over.
Status leave_stopped(std::vector<LiveProcess>& processes) {
  for (const auto& process : processes) {
    for (const auto& thread : process.frozen.threads) {
      if (thread.alive()) syscall(SYS_tgkill, thread.pid(), thread.tid(), SIGSTOP);
    }
  }
  FirstError error;
  error.note(let_run(processes));
  const auto deadline = Clock::now() + patience;
  for (const auto& process : processes) {
    if (process.frozen.zombie) continue;
    if (!poll_until(deadline, [&] { return is_stopped(process.view.host_pid); })) {
      error.note(fail(Error::conflict("leave the tree stopped", "the task does not stop", subject_of(process))));
    }
  }
  return error.take();
}

/// The root stays a zombie until its parent reaps it, and so do children of an init that does not reap: neither is ours.
bool is_gone(const LiveProcess& process) {
  const auto stat = kernel::read_stat(process.view.host_pid);
  return !stat || stat->start_time != process.stat.start_time;
}

Status kill_all(std::vector<LiveProcess>& processes) {
  FirstError error;
  // All are stopped: nobody sees anybody die. By pidfd, because a process that somebody else has killed meanwhile may
  // have left its number to a stranger.
  for (auto process = processes.rbegin(); process != processes.rend(); ++process) {
    if (process->frozen.zombie || process->frozen.threads.empty()) continue;
    auto pidfd = kernel::pidfd_open(process->view.host_pid);
    error.note(pidfd ? kernel::pidfd_kill(pidfd->get(), SIGKILL) : Status(fail(pidfd.error())));
  }
  // A tracer is told first. Only when it has looked does the parent learn of it, so all must be waited for; threads
  // before their leader, whose end is reported last.
  const Waiting waiting;
  const auto deadline = Clock::now() + patience;
  for (auto process = processes.rbegin(); process != processes.rend(); ++process) {
    auto& threads = process->frozen.threads;
    for (auto thread = threads.rbegin(); thread != threads.rend(); ++thread) error.note(thread->wait_for_end(waiting, deadline));
  }
  const auto end = Clock::now() + patience_with_init;
  for (size_t index = 1; index < processes.size(); ++index) {
    (void)poll_until(end, [&] { return is_gone(processes[index]); });
  }
  return error.take();
}

}  // namespace

Status release(std::vector<LiveProcess>& processes, AfterDump after) {
  switch (after) {
    case AfterDump::let_run: return let_run(processes);
    case AfterDump::leave_stopped: return leave_stopped(processes);
    case AfterDump::kill: return kill_all(processes);
  }
  return {};
}

}  // namespace stasis::capture
