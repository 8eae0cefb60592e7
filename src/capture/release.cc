#include "capture/release.h"

#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <deque>
#include <map>
#include <span>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "base/parallel.h"
#include "base/patience.h"
#include "capture/arch/x86_64/task_code.h"
#include "capture/places.h"
#include "kernel/proc.h"
#include "kernel/process.h"
#include "kernel/processes.h"

namespace stasis::capture {
namespace {

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

bool is_stopped(pid_t tid) {
  const auto stat = kernel::read_stat(tid);
  return !stat || stat->state == 'T' || stat->is_dead();
}

/// Every thread has a SIGSTOP of its own in its queue before it runs again, so that none executes an instruction.
/// SIGCONT discards those that are left over.
Status leave_stopped(std::vector<LiveProcess>& processes) {
  stop_when_let_go(processes);
  FirstError error;
  error.note(let_run(processes));
  const auto deadline = Clock::now() + patience;
  for (const auto& process : processes) {
    if (process.frozen.zombie) continue;
    if (!poll_until(deadline, [&] { return is_stopped(process.view.witness()); })) {
      error.note(fail(Error::conflict("leave the tree stopped", "the task does not stop", subject_of(process))));
    }
  }
  return error.take();
}

/// The root stays a zombie until its parent reaps it, and so do children of an init that does not reap: neither is
/// ours.
bool is_gone(const LiveProcess& process) {
  const auto stat = kernel::read_stat(process.view.host_pid);
  return !stat || stat->start_time != process.stat.start_time;
}

/// System calls in a process that is about to die: what they do to it nobody will see. If stasis dies first, the
/// process ends itself after the next one, and the checkpoint, which is complete, has it.
class LastCalls {
 public:
  LastCalls(Tracee& thread, const Waiting& waiting, const AtPoint& at_point, Clock::time_point deadline)
      : thread_(thread), waiting_(waiting), at_point_(at_point), deadline_(deadline) {}

  /// Children that are to die are reaped by the kernel when SIGCHLD is ignored (do_notify_parent in kernel/signal.c);
  /// the dead must be waited for. Otherwise they would pass to init as zombies, and their pids stay taken until init
  /// has looked.
  Status reap_children(std::span<const pid_t> zombies) {
    TRY(prepare());
    TRY(call(SYS_rt_sigaction, {SIGCHLD, place_ + offsetof(Planted, handler), 0, sizeof(uint64_t), 0, 0}));
    for (const pid_t zombie : zombies)
      TRY(call(SYS_wait4, {static_cast<uint64_t>(zombie), 0, WNOHANG | __WALL, 0, 0, 0}));
    return {};
  }

  /// For one of its own.
  Status leave_group() {
    TRY(prepare());
    const int64_t result = TRY(call(SYS_setpgid, {}));
    return result == 0 ? Status() : Status(fail(Error::system("setpgid", static_cast<int>(-result), "in the task")));
  }

 private:
  struct Planted {
    // syscall; mov $SIGKILL, %edi; mov $SYS_exit_group, %eax; syscall
    uint8_t code[16] = {0x0f, 0x05, 0xbf, SIGKILL, 0, 0, 0, 0xb8, SYS_exit_group, 0, 0, 0, 0x0f, 0x05};
    uint64_t handler = 1, flags = 0, restorer = 0, mask = 0;  // SIG_IGN
  };

  Status prepare() {
    place_ = TRY(find_stub_place(thread_.tid(), occupied_by(TRY(kernel::read_maps(thread_.tid())))));
    return kernel::write_memory(thread_.tid(), RemoteAddress{place_}, bytes_of(Planted()));
  }
  Result<int64_t> call(uint64_t number, const uint64_t (&arguments)[6]) {
    TRY(thread_.set_registers(call_registers(thread_.general(), place_, number, arguments)));
    at_point_("last-call-registers");
    // Only now: with its own registers and our mask the thread would go on deaf.
    TRY(thread_.set_signal_mask(~uint64_t{0}));
    at_point_("last-call-mask");
    for (int stop = 0; stop < 2; ++stop) {
      TRY(thread_.run(Tracee::Run::to_system_call));
      TRY(thread_.wait_for_system_call(waiting_, deadline_));
    }
    return call_result(TRY(thread_.registers()));
  }

  Tracee& thread_;
  const Waiting& waiting_;
  const AtPoint& at_point_;
  Clock::time_point deadline_;
  uint64_t place_ = 0;
};

/// A pid namespace ends when no ids but its init's are in use there (kernel/pid_namespace.c, zap_pid_ns_processes), and
/// the id of a group is as long as it has members. So whoever is in a group that is led from a namespace around which
/// he lives, or which he is the init of himself, has to leave it before anybody is killed.
class NamespaceKeepers {
 public:
  explicit NamespaceKeepers(const std::vector<LiveProcess>& processes) {
    for (const auto& process : processes) {
      levels_[process.view.host_pid] = ids_of(process).ns_pid.size();
      any_nested_ = any_nested_ || ids_of(process).ns_pid.size() > 1;
    }
  }
  bool contains(const LiveProcess& process) const {
    const auto& ids = ids_of(process);
    if (!any_nested_ || process.frozen.zombie || ids.ns_pgid.front() == ids.ns_pid.front()) return false;
    const bool is_init = ids.ns_pid.size() > 1 && ids.ns_pid.back() == 1;
    if (is_init && ids.ns_pgid.back() != 0) return true;
    const auto leader = levels_.find(ids.ns_pgid.front());
    if (leader == levels_.end()) return true;  // it is dead: where it lived cannot be seen from around there
    return ids.ns_pgid.size() < leader->second || ids.ns_pgid[leader->second - 1] == 0;
  }

 private:
  static const kernel::StatusInfo& ids_of(const LiveProcess& process) { return *process.view.statuses.front(); }

  std::map<pid_t, size_t> levels_;  ///< of pid namespaces, in which processes live
  bool any_nested_ = false;
};

/// Generations: the root is 0. Whoever lives in a nested pid namespace comes after its init, and an init after that of
/// the namespace which its own lies in, too: those who have come by setns, and their siblings, have parents outside.
std::vector<size_t> depths_of(const std::vector<LiveProcess>& processes) {
  constexpr size_t nobody = ~size_t{0};
  std::map<pid_t, size_t> places;
  std::map<std::string, size_t> inits;  // by what the link of their namespace says
  std::vector<size_t> parents, inits_of;
  const auto ids = [](const LiveProcess& process) { return process.view.statuses.front()->ns_pid; };
  const auto is_init = [&](const LiveProcess& process) {
    return ids(process).size() > ids(processes.front()).size() && ids(process).back() == 1;
  };
  const auto space_of = [](const LiveProcess& process) {
    return kernel::read_link(fmt::format("/proc/{}/ns/pid", process.view.host_pid)).value_or("");
  };
  const auto space_around = [&](const LiveProcess& process) {
    return is_init(process) ? kernel::outer_pid_namespace(process.view.host_pid).value_or("") : space_of(process);
  };
  for (size_t index = 0; index < processes.size(); ++index) {
    const auto parent = places.find(processes[index].stat.ppid);
    parents.push_back(parent == places.end() ? nobody : parent->second);
    places[processes[index].view.host_pid] = index;
    if (is_init(processes[index])) inits[space_of(processes[index])] = index;
  }
  for (size_t index = 0; index < processes.size(); ++index) {
    const bool is_nested = !inits.empty() && ids(processes[index]).size() > ids(processes.front()).size();
    const auto init = is_nested ? inits.find(space_around(processes[index])) : inits.end();
    inits_of.push_back(init == inits.end() ? nobody : init->second);
  }
  std::vector<size_t> depths(processes.size());
  for (bool changed = true; std::exchange(changed, false);) {
    for (size_t index = 0; index < processes.size(); ++index) {
      for (const size_t above : {parents[index], inits_of[index]}) {
        if (above == nobody || depths[index] > depths[above]) continue;
        depths[index] = depths[above] + 1;
        changed = true;
      }
    }
  }
  return depths;
}

class Killing {
 public:
  Killing(std::vector<LiveProcess>& processes, const AtPoint& at_point)
      : processes_(processes), at_point_(at_point), depths_(depths_of(processes)) {
    std::map<pid_t, LiveProcess*> known;
    for (auto& process : processes_) {
      known[process.view.host_pid] = &process;
      const auto parent = known.find(process.stat.ppid);
      if (parent == known.end()) continue;
      auto& entry = parents_[parent->first];
      entry.process = parent->second;
      const size_t level = parent->second->view.statuses.front()->ns_pid.size();
      if (process.frozen.zombie) entry.zombies.push_back(process.view.statuses.front()->ns_pid.at(level - 1));
    }
  }

  /// Children before their parents, who are stopped all the while and see nothing of it.
  Status run() {
    size_t depth = 0;
    for (const size_t one : depths_) depth = std::max(depth, one);
    TRY(empty_namespaces());
    for (auto& [pid, parent] : parents_) prepare_parent(parent);
    at_point_("killing");
    for (size_t generation = depth + 1; generation-- > 0;) {
      for_generation(generation, [&](LiveProcess& process) { kill(process); });
      wait_for_ends(generation);
    }
    const auto end = Clock::now() + patience_with_init;
    for (size_t index = 1; index < processes_.size(); ++index) {
      (void)poll_until(end, [&] { return is_gone(processes_[index]); });
    }
    return error_.take();
  }

 private:
  struct Parent {
    LiveProcess* process = nullptr;
    std::vector<pid_t> zombies;  ///< as the parent calls them
  };
  struct Dying {
    Tracee* thread;
    const LiveProcess* process;
  };

  template <typename Action>
  void for_generation(size_t generation, Action action) {
    for (size_t index = 0; index < processes_.size(); ++index) {
      if (depths_[index] == generation && !processes_[index].frozen.threads.empty()) action(processes_[index]);
    }
  }

  /// By pidfd, because a process that somebody else has killed meanwhile may have left its number to a stranger.
  void kill(LiveProcess& process) {
    auto pidfd = kernel::pidfd_open(process.view.host_pid);
    error_.note(pidfd ? kernel::pidfd_kill(pidfd->get(), SIGKILL) : Status(fail(pidfd.error())));
  }

  Status empty_namespaces() {
    const NamespaceKeepers keepers(processes_);
    for (auto& process : processes_) {
      if (!keepers.contains(process) || process.frozen.threads.empty()) continue;
      auto left = LastCalls(process.frozen.threads.front(), waiting_, at_point_, deadline_).leave_group();
      if (left || left.error().code() == ErrorCode::gone) continue;
      return fail(std::move(left.error()).about(subject_of(process)));
    }
    return {};
  }

  void prepare_parent(const Parent& parent) {
    auto& threads = parent.process->frozen.threads;
    if (threads.empty() || !threads.front().alive()) return;
    // A nicety: without it the children are reaped by init, a little later. Their ids must be the parent's own.
    (void)LastCalls(threads.front(), waiting_, at_point_, deadline_).reap_children(parent.zombies);
  }

  /// A tracer is told first, and only when it has looked does the parent learn of it. No order of looking is right for
  /// all: the last thread of a pid namespace's init, whichever that is, ends only when all others have been reaped
  /// (kernel/pid_namespace.c, zap_pid_ns_processes).
  void wait_for_ends(size_t generation) {
    std::vector<Dying> dying;
    for_generation(generation, [&](LiveProcess& process) {
      for (auto& thread : process.frozen.threads) dying.push_back({&thread, &process});
    });
    // Reaping is work: the kernel forgets what /proc has shown of each thread.
    const size_t parts = dying.size() < worth_dividing ? 1 : processor_count();
    const auto wait = [&](size_t part) {
      const size_t begin = dying.size() * part / parts, end = dying.size() * (part + 1) / parts;
      return wait_for_ends(
          {dying.begin() + static_cast<ptrdiff_t>(begin), dying.begin() + static_cast<ptrdiff_t>(end)});
    };
    if (auto status = parallel_for(parts, wait, 2); !status) return give_up(std::move(status).error());
    if (!failed_) deadline_ = Clock::now() + patience;
    // A leader that ended between its seizure and its stop is ours still: its parent is told when we have looked.
    for_generation(generation, [&](LiveProcess& process) {
      const auto leader_is_told = [&] { return Tracee::has_ended(process.view.host_pid, !is_our_child(process)); };
      if (process.frozen.leader_ended && !poll_until(deadline_, leader_is_told)) give_up(does_not_end(process));
    });
  }
  Status wait_for_ends(std::deque<Dying> dying) const {
    auto deadline = deadline_;
    // Each look takes the lock that the dying need to end (tasklist_lock): a few misses are reason enough to wait.
    for (size_t misses = 0; !dying.empty();) {
      const Dying next = dying.front();
      dying.pop_front();
      const bool is_ours = is_our_child(*next.process) && next.thread->pid() == next.thread->tid();
      if (next.thread->has_ended(!is_ours)) {
        if (!failed_) deadline = Clock::now() + patience;
        continue;
      }
      dying.push_back(next);
      if (++misses < std::min(dying.size(), few_misses)) continue;
      if (Clock::now() > deadline) return fail(does_not_end(*next.process));
      misses = 0;
      usleep(50);
    }
    return {};
  }
  bool is_our_child(const LiveProcess& process) const { return process.stat.ppid == self_; }
  static Error does_not_end(const LiveProcess& process) {
    return Error::conflict("kill the task", "it does not end", subject_of(process));
  }
  void give_up(Error error) {
    error_.note(fail(std::move(error)));
    failed_ = true;
  }

  static constexpr size_t few_misses = 4, worth_dividing = 64;

  std::vector<LiveProcess>& processes_;
  const AtPoint& at_point_;
  std::vector<size_t> depths_;
  std::map<pid_t, Parent> parents_;
  const pid_t self_ = getpid();
  Waiting waiting_;
  Clock::time_point deadline_ = Clock::now() + patience;  ///< renewed as long as one after the other ends
  bool failed_ = false;
  FirstError error_;
};

}  // namespace

void stop_when_let_go(const std::vector<LiveProcess>& processes) {
  for (const auto& process : processes) {
    for (const auto& thread : process.frozen.threads) {
      if (thread.alive()) syscall(SYS_tgkill, thread.pid(), thread.tid(), SIGSTOP);
    }
  }
}

Status release(std::vector<LiveProcess>& processes, AfterDump after, const AtPoint& at_point) {
  switch (after) {
    case AfterDump::let_run:
      return let_run(processes);
    case AfterDump::leave_stopped:
      return leave_stopped(processes);
    case AfterDump::kill:
      return Killing(processes, at_point ? at_point : [](std::string_view) {}).run();
  }
  return {};
}

}  // namespace stasis::capture
