#include "execute/resume.h"

#include <elf.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <map>
#include <set>

#include "agent/area.h"
#include "base/patience.h"
#include "execute/arch/x86_64/final_registers.h"
#include "execute/host_threads.h"
#include "kernel/proc.h"
#include "kernel/process.h"
#include "kernel/ptrace.h"
#include "kernel/timed_calls.h"

namespace stasis::execute {
namespace {

struct LiveThread {
  const model::Task* task = nullptr;
  const model::Thread* thread = nullptr;
  pid_t host_tid = 0;
  pid_t host_pid = 0;
  bool is_first = false;  ///< of its process
  bool stopping = false;  ///< seized and interrupted
  Bytes general = {};     ///< the registers it is let go with
};

/// It runs in the agent area until it has: that must not be unmapped before.
Status wait_for_end_of_leader(pid_t host_pid) {
  Patience patience;
  while (!TRY(kernel::read_thread_stat(host_pid, host_pid)).is_dead()) {
    if (!patience.pause())
      return fail(
          Error::conflict("wait for the end of a first thread", "it does not come", fmt::format("task {}", host_pid)));
  }
  return {};
}

class SeizedThreads final : public Resumption {
 public:
  SeizedThreads(const model::Application& application, AddressRange area) : application_(application), area_(area) {}

  bool stop_ready(const std::function<bool(Pid, Tid)>& is_ready) override {
    if (application_.root_is_namespace_init) return false;  // whose numbers are to be found out first
    if (threads_.empty() && !find_threads(0)) return false;
    const size_t before = ready_;
    for (; ready_ < threads_.size(); ++ready_) {
      auto& live = threads_[ready_];
      // First threads are ready when everything is.
      if (live.is_first || live.task->leader_has_ended()) continue;
      if (!is_ready(live.task->pid, live.thread->tid) || !stop(live)) break;
    }
    return ready_ != before;
  }

  Status stop_all(pid_t host_root) override {
    if (threads_.empty()) TRY(find_threads(host_root));
    for (const auto& live : threads_) {
      if (live.is_first && live.task->leader_has_ended()) TRY(wait_for_end_of_leader(live.host_pid));
    }
    // All are asked to stop before the first is waited for: their latencies overlap.
    for (auto& live : threads_) {
      if (!live.stopping) TRY(stop(live));
    }
    for (const auto& live : threads_) TRY_IN(name_of(live), wait_for_stop(live));
    return {};
  }

  Status let_go(bool leave_stopped, const std::function<Status(const std::map<Pid, pid_t>&)>& at_last) override {
    syscall_instruction_ = area_.begin + TRY(find_syscall_instruction(agent::blob()));
    for (auto& live : threads_) {
      live.general = TRY_IN(name_of(live), final_general(live.thread->registers));
      TRY_IN(name_of(live), set_extended_state(live));
    }
    TRY(enter_sleeps());
    for (const auto& live : threads_) TRY_IN(name_of(live), set_general(live, live.general));
    TRY(unmap_agent());
    TRY(at_last(host_pids()));
    return detach(leave_stopped);
  }

 private:
  static std::string name_of(const LiveThread& live) {
    return fmt::format("task {} '{}', thread {}", live.task->pid, live.thread->name, live.thread->tid);
  }

  /// Of each task a thread that lives.
  std::map<Pid, pid_t> host_pids() const {
    std::map<Pid, pid_t> pids;
    for (const auto& live : threads_) pids.emplace(live.task->pid, live.host_tid);
    return pids;
  }

  Status find_threads(pid_t host_root) {
    std::map<pid_t, HostThread> ids;
    if (application_.root_is_namespace_init) ids = host_threads(host_root);
    const auto host = [&](pid_t id) -> Result<pid_t> {
      if (!application_.root_is_namespace_init) return id;
      const auto found = ids.find(id);
      if (found == ids.end())
        return fail(Error::gone("find the restored task", fmt::format("pid {} of the namespace", id)));
      return found->second.tid;
    };
    for (const auto& task : application_.tasks) {
      if (task.state == model::TaskState::zombie) continue;
      const pid_t host_pid = TRY(host(task.pid.value));
      const size_t first = task.leader_has_ended() ? 1 : 0;
      for (size_t index = first; index < task.threads.size(); ++index) {
        const auto& thread = task.threads[index];
        threads_.push_back({&task, &thread, TRY(host(thread.tid.value)), host_pid, index == first});
      }
    }
    return {};
  }

  static Status stop(LiveThread& live) {
    const bool filtered = live.thread->seccomp.mode != model::Seccomp::Mode::disabled;
    // Our last call in the task is not one that its filter was written for.
    TRY_IN(name_of(live), kernel::ptrace_seize(live.host_tid, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL |
                                                                  (filtered ? PTRACE_O_SUSPEND_SECCOMP : 0)));
    TRY_IN(name_of(live), kernel::ptrace_interrupt(live.host_tid));
    live.stopping = true;
    return {};
  }

  /// A first thread that is killed tells nobody before all others of its process have been waited for (kernel/exit.c,
  /// delay_group_leader), which waits for ever where it is waited for first.
  static Result<kernel::WaitStatus> next_stop(const LiveThread& live, std::string_view operation) {
    for (Patience patience;;) {
      const auto waited = TRY(kernel::wait_for(live.host_tid, WNOHANG));
      if (waited.tid != 0 && waited.status.stopped()) return waited.status;
      const auto stat = kernel::read_thread_stat(live.host_pid, live.host_tid);
      if (waited.tid != 0 || !stat || stat->is_dead()) return fail(Error::gone(std::string(operation), name_of(live)));
      if (!patience.pause())
        return fail(Error::conflict(std::string(operation), "it does not come to a stop", name_of(live)));
    }
  }
  static Status wait_for_stop(const LiveThread& live) {
    TRY(next_stop(live, "stop the restored task"));
    return {};
  }

  static Result<Bytes> general_now(const LiveThread& live) {
    return kernel::ptrace_get_regset(live.host_tid, NT_PRSTATUS);
  }
  static Status set_general(const LiveThread& live, ByteView general) {
    return kernel::ptrace_set_regset(live.host_tid, NT_PRSTATUS, general);
  }

  Status set_extended_state(const LiveThread& live) {
    if (machine_state_size_ == 0) {
      machine_state_size_ = TRY(kernel::ptrace_get_regset(live.host_tid, NT_X86_XSTATE)).size();
    }
    return kernel::ptrace_set_regset(live.host_tid, NT_X86_XSTATE,
                                     TRY(final_extended(live.thread->registers, machine_state_size_)));
  }

  /// Threads that slept for a duration make their calls for what remained of it, and are interrupted at once: that is
  /// how a thread gets a restart block (model::InterruptedCall; kernel/timed_calls.h). Then they are where a stop
  /// would have left them, and the kernel does the rest: goes on with the sleep, or ends it if a signal is handled
  /// first.
  Status enter_sleeps() {
    std::vector<LiveThread*> sleepers;
    for (auto& live : threads_) {
      if (live.thread->interrupted_call) sleepers.push_back(&live);
    }
    // With the interrupt pending, a page of the arguments that is not at hand is not waited for: the call sees EFAULT
    // (arch/x86/mm/fault.c, fault_signal_pending). It is made again; at worst it begins anew when the thread goes on.
    constexpr int attempts = 4;
    for (int attempt = 0; attempt < attempts && !sleepers.empty(); ++attempt) sleepers = TRY(enter(sleepers));
    return {};
  }

  /// Those that have to try again.
  Result<std::vector<LiveThread*>> enter(const std::vector<LiveThread*>& sleepers) const {
    std::vector<LiveThread*> again;
    for (const auto* live : sleepers) TRY_IN(name_of(*live), prepare_sleep(*live));
    for (const auto* live : sleepers) TRY_IN(name_of(*live), kernel::ptrace_to_syscall(live->host_tid));
    for (const auto* live : sleepers) {
      TRY_IN(name_of(*live), wait_for_syscall_stop(*live));
      TRY_IN(name_of(*live), kernel::ptrace_interrupt(live->host_tid));
      TRY_IN(name_of(*live), kernel::ptrace_to_syscall(live->host_tid));
    }
    for (auto* live : sleepers) {
      TRY_IN(name_of(*live), wait_for_syscall_stop(*live));
      const int64_t result = call_result(TRY_IN(name_of(*live), general_now(*live)));
      if (result == -EFAULT)
        again.push_back(live);
      else
        live->general = registers_after_call(live->general, result);
    }
    return again;
  }

  Status prepare_sleep(const LiveThread& live) const {
    constexpr uint64_t ns_per_s = 1'000'000'000;
    const auto& call = *live.thread->interrupted_call;
    const Bytes now = TRY(general_now(live));
    const timespec remaining{static_cast<time_t>(call.remaining_ns / ns_per_s),
                             static_cast<long>(call.remaining_ns % ns_per_s)};
    // Nobody will return to the agent's frames.
    const uint64_t place = stack_pointer(now);
    TRY(kernel::write_memory(live.host_tid, RemoteAddress{place}, bytes_of(remaining)));
    const auto arguments = kernel::with_duration(call.number, call_arguments(live.general), call.remaining_ns, place);
    return set_general(live, registers_for_call(now, syscall_instruction_, call.number, arguments));
  }

  /// One thread of each address space unmaps the area; the stop at the call's end comes before it would run on.
  Status unmap_agent() {
    std::set<ObjectId> spaces;
    std::vector<const LiveThread*> runners;
    for (const auto& live : threads_) {
      if (spaces.insert(live.task->address_space).second) runners.push_back(&live);
    }
    for (const auto* live : runners) {
      TRY_IN(name_of(*live), set_general(*live, registers_for_call(live->general, syscall_instruction_, SYS_munmap,
                                                                   {area_.begin, area_.size()})));
    }
    for (int stop = 0; stop < 2; ++stop) {  // at the call's entry and at its end
      for (const auto* live : runners) TRY_IN(name_of(*live), kernel::ptrace_to_syscall(live->host_tid));
      for (const auto* live : runners) TRY_IN(name_of(*live), wait_for_syscall_stop(*live));
    }
    for (const auto* live : runners) {
      const int64_t result = call_result(TRY_IN(name_of(*live), general_now(*live)));
      if (result != 0) return fail(Error::system("unmap the agent", static_cast<int>(-result), name_of(*live)));
      TRY_IN(name_of(*live), set_general(*live, live->general));
    }
    return {};
  }

  /// No signal comes in between: all are blocked until the thread is let go.
  static Status wait_for_syscall_stop(const LiveThread& live) {
    for (;;) {
      if (TRY(next_stop(live, "finish the restored task")).is_syscall_stop()) return {};
      TRY(kernel::ptrace_to_syscall(live.host_tid));
    }
  }

  /// What stopped it once, if that stops it again; SIGSTOP always does. The signals of terminals do not if they are
  /// handled or blocked, or if the group is orphaned: nobody of the session is outside of it to continue it
  /// (kernel/signal.c, get_signal; kernel/exit.c, will_become_orphaned_pgrp).
  int stop_signal_of(const model::Task& task) const {
    const int signal = task.stop_signal;
    if (signal != SIGTSTP && signal != SIGTTIN && signal != SIGTTOU) return SIGSTOP;
    const auto index = static_cast<size_t>(signal - 1);
    const bool handled = application_.signal_handlers.at(task.handlers).actions[index].handler != 0;
    const bool blocked = std::ranges::any_of(
        task.threads, [&](const model::Thread& thread) { return (thread.blocked_signals >> index & 1) != 0; });
    const bool orphaned = std::ranges::none_of(application_.tasks, [&](const model::Task& member) {
      const auto* parent = application_.find(member.parent);
      return member.group == task.group && parent != nullptr && parent->group != task.group &&
             parent->session == member.session;
    });
    return handled || blocked || orphaned ? SIGSTOP : signal;
  }

  Status detach(bool leave_stopped) {
    for (const auto& live : threads_) {
      if (live.is_first && live.task->state == model::TaskState::stopped)
        kill(live.host_pid, stop_signal_of(*live.task));
      else if (live.is_first && leave_stopped)
        kill(live.host_pid, SIGSTOP);
    }
    for (const auto& live : threads_) {
      // From here on its pending signals are delivered.
      TRY_IN(name_of(live), kernel::ptrace_set_sigmask(live.host_tid, live.thread->blocked_signals));
      TRY_IN(name_of(live), kernel::ptrace_detach(live.host_tid));
    }
    return {};
  }

  const model::Application& application_;
  AddressRange area_;
  uint64_t syscall_instruction_ = 0;
  size_t machine_state_size_ = 0;
  std::vector<LiveThread> threads_;
  size_t ready_ = 0;  ///< those before have been looked at by stop_ready
};

}  // namespace

std::unique_ptr<Resumption> Resumption::of(const model::Application& application, AddressRange agent_area) {
  return std::make_unique<SeizedThreads>(application, agent_area);
}

}  // namespace stasis::execute
