#include "capture/walk.h"

#include <elf.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include <fmt/format.h>

#include "base/parallel.h"
#include "kernel/proc.h"

namespace stasis::capture {
namespace {

class Walk {
 public:
  Walk(std::vector<FrozenProcess> frozen, std::vector<Look> looks, resource::CaptureContext& context)
      : frozen_(std::move(frozen)), looks_(std::move(looks)), context_(context) {}

  Result<std::vector<LiveProcess>> run() {
    for (size_t index = 0; index < frozen_.size(); ++index) TRY(take(frozen_[index], looks_[index]));
    if (processes_.empty()) return fail(Error::gone("look at the tree", "its root"));
    put_in_order();
    TRY(find_namespace());
    auto& application = context_.application;
    application.tasks.reserve(processes_.size());
    for (const auto& process : processes_) application.tasks.push_back(identify(process));
    application.root = application.tasks.front().pid;
    name_parent_threads();
    check_session();
    for (size_t index = 0; index < processes_.size(); ++index) {
      processes_[index].pid = application.tasks[index].pid;
      TRY(save_threads(processes_[index], application.tasks[index]));
    }
    return std::move(processes_);
  }

 private:
  /// A process whose parent has ended while we were freezing
  /// belongs to somebody else now (it has become a daemon): it is let go.
  Status take(FrozenProcess& frozen, Look& look) {
    LiveProcess live;
    live.view.host_pid = frozen.host_pid;
    live.view.leader_ended = frozen.leader_ended && !frozen.zombie;
    // A zombie that was reaped before its parent was stopped.
    if (!look.stat && look.stat.error().code() == ErrorCode::gone && frozen.zombie) return {};
    live.stat = TRY(std::move(look.stat));
    if (!processes_.empty() && !host_pids_.contains(live.stat.ppid)) return {};
    live.view.host_tids = std::move(look.tids);
    // Refused by the freezer, and said so.
    if (live.view.host_tids.empty()) return {};
    for (auto& status : look.statuses) live.view.statuses.emplace_back(TRY(std::move(status)));
    host_pids_.insert(frozen.host_pid);
    live.frozen = std::move(frozen);
    processes_.push_back(std::move(live));
    return {};
  }

  /// Siblings by their pids. The kernel lists them as they came, by birth or by adoption: whoever looks at the same
  /// tree again, restored, is to find it, and to number its objects, in the same order.
  void put_in_order() {
    std::map<pid_t, std::vector<LiveProcess*>> children;  // by the parent's pid on the host
    for (auto& process : processes_) children[process.stat.ppid].push_back(&process);
    for (auto& [parent, siblings] : children) {
      const size_t level = processes_.front().view.statuses.front()->ns_pid.size();
      std::ranges::sort(siblings, {}, [&](const LiveProcess* process) {
        const auto& leader = *process->view.statuses.front();
        return level == 0 || leader.ns_pid.size() < level ? leader.pid : leader.ns_pid[level - 1];
      });
    }
    std::vector<LiveProcess*> order{&processes_.front()};
    for (size_t next = 0; next < order.size(); ++next) {
      const auto& below = children[order[next]->view.host_pid];
      order.insert(order.end(), below.begin(), below.end());
    }
    std::vector<LiveProcess> ordered;
    for (auto* process : order) ordered.push_back(std::move(*process));
    processes_ = std::move(ordered);
  }

  /// Which of the NSpid numbers are the tree's own: the innermost of the root's.
  Status find_namespace() {
    const auto& root = *processes_.front().view.statuses.front();
    level_ = root.ns_pid.size();
    if (level_ == 0)
      return fail(Error::unsupported("look at the tree", "this kernel does not show NSpid (CONFIG_PID_NS)"));
    context_.application.root_is_namespace_init = level_ > 1 && root.ns_pid.back() == 1;
    if (level_ > 1 && root.ns_pid.back() != 1) {
      context_.diagnostics.refuse(subject_of(processes_.front()),
                                  "lives in another pid namespace without being its init",
                                  "Dump the namespace's init (pid 1 in there), or run stasis inside the namespace");
    }
    for (const auto& process : processes_) {
      for (const auto& status : process.view.statuses) {
        if (status->ns_pid.size() < level_) continue;
        context_.host_to_tree[status->pid] = status->ns_pid[level_ - 1];
      }
    }
    return {};
  }

  Pid in_tree(const std::vector<pid_t>& ids) const { return Pid{level_ <= ids.size() ? ids[level_ - 1] : 0}; }
  /// Those in deeper namespaces.
  std::vector<pid_t> nested(const std::vector<pid_t>& ids) const {
    return {ids.begin() + static_cast<ptrdiff_t>(std::min(level_, ids.size())), ids.end()};
  }

  model::Task identify(const LiveProcess& process) {
    const auto& stat = process.stat;
    const auto& leader = *process.view.statuses.front();
    model::Task task;
    task.name = leader.name;
    task.pid = in_tree(leader.ns_tgid);
    task.nested_pids = nested(leader.ns_tgid);
    const auto parent = context_.host_to_tree.find(stat.ppid);
    const bool is_root = process.view.host_pid == processes_.front().view.host_pid;
    task.parent = Pid{is_root || parent == context_.host_to_tree.end() ? 0 : parent->second};
    task.group = in_tree(leader.ns_pgid);
    task.session = in_tree(leader.ns_sid);
    if (process.frozen.zombie) {
      task.state = model::TaskState::zombie;
      task.exit_status = stat.exit_code;
      return task;  // the terminal that procfs still shows it with is of no use to anybody
    }
    task.controlling_terminal = static_cast<uint32_t>(stat.tty_nr);
    task.stop_signal = process.frozen.stop_signal();
    if (task.stop_signal != 0) task.state = model::TaskState::stopped;
    return task;
  }

  /// Those that are the children of another thread of their parent than the first that lives.
  void name_parent_threads() {
    std::map<pid_t, pid_t> first_of;  // processes with several
    for (const auto& process : processes_) {
      if (process.frozen.threads.size() > 1) first_of[process.view.host_pid] = process.frozen.witness();
    }
    for (size_t index = 1; index < processes_.size(); ++index) {
      const auto parent = first_of.find(processes_[index].stat.ppid);
      const pid_t thread = processes_[index].frozen.parent_thread;
      if (parent == first_of.end() || parent->second == thread) continue;
      if (const auto known = context_.host_to_tree.find(thread); known != context_.host_to_tree.end())
        context_.application.tasks[index].parent_thread = Tid{known->second};
    }
  }

  void check_session() {
    auto& application = context_.application;
    const auto& root = application.tasks.front();
    const bool outside = root.session != root.pid;
    application.shell_job = outside && context_.policy.shell_job;
    if (!outside || context_.policy.shell_job) return;
    context_.diagnostics.refuse(
        subject_of(processes_.front()),
        fmt::format("belongs to session {}, which is led from outside the tree", root.session),
        "Pass --shell-job to take session and terminal from the caller at restore, or start it with setsid");
  }

  Status save_threads(LiveProcess& process, model::Task& task) {
    if (process.frozen.zombie) return {};
    task.threads.reserve(process.view.host_tids.size());
    if (process.frozen.leader_ended) TRY(save_ended_leader(process, task));
    for (size_t index = task.threads.size(); index < process.view.host_tids.size(); ++index) {
      auto& tracee = process.tracee(index);
      const auto& status = *process.view.statuses[index];
      if (!tracee.stopped()) continue;  // refused by the freezer, and said so
      TRY(tracee.save(status.blocked));
      auto& thread = task.threads.emplace_back(identify(status));
      // The mask of a thread inside sigsuspend or ppoll is not the one in its status, which is the call's own.
      thread.blocked_signals = tracee.signal_mask();
      thread.registers.general = plain_registers(tracee.general(), Resumption::image, Handler::none);
      thread.registers.extended = TRY(kernel::ptrace_get_regset(tracee.tid(), NT_X86_XSTATE));
      check_thread(process, tracee, status);
    }
    return {};
  }

  model::Thread identify(const kernel::StatusInfo& status) const {
    model::Thread thread;
    thread.tid = Tid{in_tree(status.ns_pid).value};
    thread.nested_tids = nested(status.ns_pid);
    thread.name = status.name;
    return thread;
  }

  Status save_ended_leader(const LiveProcess& process, model::Task& task) {
    // In /proc/PID/stat a stopped process shows what stopped it in place of the leader's own status.
    const auto stat = TRY(kernel::read_thread_stat(process.view.host_pid, process.view.host_pid));
    task.threads.push_back(identify(*process.view.statuses.front()));
    task.threads.front().exit_status = stat.exit_code;
    if (!WIFEXITED(stat.exit_code)) {
      context_.diagnostics.refuse(subject_of(process),
                                  fmt::format("its first thread was ended by seccomp ({}) while others go on",
                                              strsignal(WTERMSIG(stat.exit_code))),
                                  "A first thread that has ended is rebuilt only if it called exit");
    }
    return {};
  }

  void check_thread(const LiveProcess& process, const Tracee& tracee, const kernel::StatusInfo& status) {
    const auto subject = [&] { return fmt::format("{}, thread {}", subject_of(process), tracee.tid()); };
    if (!is_native(tracee.general())) {
      context_.diagnostics.refuse(subject(), "runs 32-bit code", "Only 64-bit tasks can be dumped");
    }
    if (status.shadow_stack) {
      context_.diagnostics.refuse(subject(), "uses a shadow stack (CET)",
                                  "Start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off");
    }
    if (status.seccomp != 0 && !tracee.seccomp_suspended()) {
      context_.diagnostics.refuse(
          subject(), "is under seccomp, which stasis may not suspend here",
          "Run with CAP_SYS_ADMIN and without a seccomp filter of stasis' own (CONFIG_CHECKPOINT_RESTORE)");
    }
  }

  std::vector<FrozenProcess> frozen_;
  std::vector<Look> looks_;
  resource::CaptureContext& context_;
  std::vector<LiveProcess> processes_;
  std::set<pid_t> host_pids_;
  size_t level_ = 1;
};

}  // namespace

std::vector<Look> look_at(const std::vector<FrozenProcess>& frozen) {
  std::vector<Look> looks(frozen.size());
  std::vector<std::pair<size_t, size_t>> threads;  // index of the process, of the thread in it
  for (size_t index = 0; index < frozen.size(); ++index) {
    auto& look = looks[index];
    const bool ended_leader = frozen[index].leader_ended && !frozen[index].threads.empty();
    if (frozen[index].zombie || ended_leader) look.tids.push_back(frozen[index].host_pid);
    for (const auto& thread : frozen[index].threads) look.tids.push_back(thread.tid());
    look.statuses.resize(look.tids.size());
    for (size_t i = 0; i < look.tids.size(); ++i) threads.emplace_back(index, i);
  }
  (void)parallel_for(frozen.size(), [&](size_t index) -> Status {
    looks[index].stat = kernel::read_stat(frozen[index].host_pid);
    return {};
  });
  (void)parallel_for(threads.size(), [&](size_t at) -> Status {
    const auto [index, thread] = threads[at];
    auto& look = looks[index];
    look.statuses[thread] = kernel::read_thread_status(frozen[index].host_pid, look.tids[thread]);
    return {};
  });
  return looks;
}

Result<std::vector<LiveProcess>> walk(std::vector<FrozenProcess> frozen, std::vector<Look> looks,
                                      resource::CaptureContext& context) {
  return Walk(std::move(frozen), std::move(looks), context).run();
}

std::string subject_of(const LiveProcess& process) {
  return fmt::format("task {} '{}'", process.view.host_pid, process.stat.comm);
}

}  // namespace stasis::capture
