// Signals: handlers of a process, mask and alternate stack of each thread, and what is pending for either.
//
// Pending signals come back through rt_sigqueueinfo and rt_tgsigqueueinfo, which keep the whole siginfo. The kernel
// allows any si_code only for a signal to oneself (kernel/signal.c, do_rt_sigqueueinfo), so each thread queues its own.
// Everything is blocked while a process is built; final masks are set by the last step of the restore.
//
// SIGKILL and SIGSTOP cannot be blocked, so they cannot be queued while the task is built either. A task with SIGSTOP
// pending stops as soon as it is let go: it is saved as a stopped one.
//
// The mask of a thread inside sigsuspend, ppoll … is the one that it had before (PTRACE_GETSIGMASK knows; /proc shows
// the passing one): the call is made again and exchanges the masks itself.
//
// The mask of a leader that has ended still counts: a signal to the process that is ignored is dropped at once unless
// the leader has it blocked, and stays pending otherwise (kernel/signal.c, sig_ignored). The leader ends with a mask of
// its own, therefore; but what would not be dropped stays blocked, as it would be delivered while the agent runs.
#include "resource/signals.h"

#include <signal.h>
#include <sys/syscall.h>

#include <cstring>
#include <set>

#include "kernel/ptrace.h"
#include "kernel/signal_bit.h"
#include "model/pid_namespaces.h"

namespace stasis::resource {
namespace {

using kernel::signal_bit;
using plan::call;

constexpr size_t siginfo_size = 128;
constexpr int most_pending = 1 << 20;  ///< bound for hostile images; RLIMIT_SIGPENDING is far below

/// Neither caught, nor blocked, nor kept pending.
bool is_absolute(int signal) { return signal == SIGKILL || signal == SIGSTOP; }
bool has_action(int signal) { return !is_absolute(signal); }
constexpr uint64_t default_handler = 0, ignoring_handler = 1;  ///< SIG_DFL, SIG_IGN
constexpr uint64_t absolute_signals = signal_bit(SIGKILL) | signal_bit(SIGSTOP);

/// struct sigaction as the system call has it on x86-64.
struct KernelAction {
  uint64_t handler, flags, restorer, mask;
};

constexpr uint64_t by_default_ignored =
    signal_bit(SIGCHLD) | signal_bit(SIGCONT) | signal_bit(SIGURG) | signal_bit(SIGWINCH);

uint64_t ignored_by(const model::SignalHandlers& handlers) {
  uint64_t ignored = 0;
  for (int signal = 1; signal <= 64; ++signal) {
    const auto handler = handlers.actions[static_cast<size_t>(signal - 1)].handler;
    const bool by_default = handler == default_handler && (by_default_ignored & signal_bit(signal)) != 0;
    if (handler == ignoring_handler || by_default) ignored |= signal_bit(signal);
  }
  return ignored;
}

/// What matters of the mask of a leader that has ended.
uint64_t mask_of_ended(uint64_t blocked, uint64_t ignored, const std::vector<model::PendingSignal>& pending) {
  uint64_t mask = blocked | ~ignored;
  for (const auto& info : pending) mask |= signal_bit(model::signal_of(info));
  return mask & ~absolute_signals;
}

void save_queue(const std::vector<model::PendingSignal>& queue, signal_queue_entry& out) {
  for (const auto& info : queue) out.add_signals()->set_siginfo(info.data(), info.size());
}

Result<std::vector<model::PendingSignal>> load_queue(const signal_queue_entry& in, const std::string& subject) {
  std::vector<model::PendingSignal> queue;
  if (in.signals_size() > most_pending)
    return fail(Error::invalid("decode signals", "too many pending signals", subject));
  for (const auto& entry : in.signals()) {
    const auto& bytes = entry.siginfo();
    if (bytes.size() != siginfo_size) {
      return fail(Error::invalid(
          "decode signals", fmt::format("a siginfo has {} bytes instead of {}", bytes.size(), siginfo_size), subject));
    }
    queue.emplace_back(bytes.begin(), bytes.end());
    const int number = model::signal_of(queue.back());
    if (number < 1 || number > 64 || is_absolute(number))
      return fail(Error::invalid("decode signals", fmt::format("signal {} cannot be pending", number), subject));
  }
  return queue;
}

/// They stop the task as soon as it is let go.
void take_absolute(std::vector<model::PendingSignal>& queue, model::Task& task) {
  for (const auto& info : queue) {
    if (model::signal_of(info) != SIGSTOP || task.state != model::TaskState::running) continue;
    task.state = model::TaskState::stopped;
    task.stop_signal = SIGSTOP;
  }
  std::erase_if(queue, [](const auto& info) { return is_absolute(model::signal_of(info)); });
}

class SignalsRoom final : public TaskRoom {
 public:
  std::string_view name() const override { return "signals"; }

  Status ask(CaptureContext& context, model::Task& task, Inquiry& inquiry) const override {
    auto& handlers = context.application.signal_handlers[task.handlers];
    if (handlers.id == task.handlers) return {};  // shared, and asked of another task already
    handlers.id = task.handlers;
    inquiry.ask(call(plan::Call::get_actions, plan::Out{64 * sizeof(KernelAction)}),
                [&handlers](const Inquiry::Answer& answer) -> Status {
                  for (int signal = 1; signal <= 64; ++signal) {
                    if (!has_action(signal)) continue;
                    const auto index = static_cast<size_t>(signal - 1);
                    KernelAction now{};
                    std::memcpy(&now, answer.out.at(0).data() + index * sizeof now, sizeof now);
                    handlers.actions[index] = {now.handler, now.flags, now.restorer, now.mask};
                  }
                  return {};
                });
    return {};
  }

  Status ask(CaptureContext&, model::Task&, model::Thread& thread, Inquiry& inquiry) const override {
    inquiry.ask(call(SYS_sigaltstack, 0, plan::Out{sizeof(stack_t)}),
                [&thread](const Inquiry::Answer& answer) -> Status {
                  stack_t stack{};
                  std::memcpy(&stack, answer.out.at(0).data(), sizeof stack);
                  thread.alternate_stack = {reinterpret_cast<uint64_t>(stack.ss_sp), stack.ss_size,
                                            static_cast<uint32_t>(stack.ss_flags) & ~SS_ONSTACK};
                  return {};
                });
    return {};
  }

  Status encode(const model::Application& application, const model::Task& task,
                image::TaskRecords& records) const override {
    auto& leader = *records.cores.at(0).mutable_tc();
    const auto& handlers = application.signal_handlers.at(task.handlers);
    for (int signal = 1; signal <= 64; ++signal) {
      if (!has_action(signal)) continue;
      const auto& action = handlers.actions[static_cast<size_t>(signal - 1)];
      auto& out = *leader.add_sigactions();
      out.set_sigaction(action.handler), out.set_flags(action.flags), out.set_restorer(action.restorer),
          out.set_mask(action.mask);
      out.set_compat_sigaction(false);
    }
    save_queue(task.pending, *leader.mutable_signals_s());
    leader.set_blk_sigset(task.threads.at(0).blocked_signals);
    for (size_t i = 0; i < task.threads.size(); ++i) {
      const auto& thread = task.threads[i];
      auto& core = *records.cores.at(i).mutable_thread_core();
      core.set_blk_sigset(thread.blocked_signals);
      save_queue(thread.pending, *core.mutable_signals_p());
      auto& stack = *core.mutable_sas();
      stack.set_ss_sp(thread.alternate_stack.address), stack.set_ss_size(thread.alternate_stack.size);
      stack.set_ss_flags(thread.alternate_stack.flags);
    }
    return {};
  }

  Status decode(const image::TaskRecords& records, model::Application& application, model::Task& task) const override {
    const std::string subject = fmt::format("core-{}.img", task.pid);
    const auto& leader = records.cores.at(0).tc();
    auto& handlers = application.signal_handlers[task.handlers];
    handlers.id = task.handlers;
    if (leader.sigactions_size() > 62)
      return fail(Error::invalid("decode signals", "more than 62 signal actions", subject));
    int next = 0;
    for (int signal = 1; signal <= 64 && next < leader.sigactions_size(); ++signal) {
      if (!has_action(signal)) continue;
      const auto& in = leader.sigactions(next++);
      handlers.actions[static_cast<size_t>(signal - 1)] = {in.sigaction(), in.flags(), in.restorer(), in.mask()};
    }
    task.pending = TRY(load_queue(leader.signals_s(), subject));
    for (size_t i = 0; i < task.threads.size(); ++i) {
      auto& thread = task.threads[i];
      const auto& core = records.cores.at(i).thread_core();
      thread.blocked_signals = (core.has_blk_sigset() ? core.blk_sigset() : leader.blk_sigset()) & ~absolute_signals;
      thread.pending = TRY(load_queue(core.signals_p(), fmt::format("core-{}.img", thread.tid)));
      if (core.has_sas()) thread.alternate_stack = {core.sas().ss_sp(), core.sas().ss_size(), core.sas().ss_flags()};
    }
    return {};
  }

  void contribute(plan::Stage stage, const model::Application& application, const model::Task& task,
                  plan::Sink& sink) const override {
    if (stage != plan::Stage::process) return;
    // Everything has its default action at birth (the executor sees to it): only the others are set.
    plan::Calls calls;
    const auto& handlers = application.signal_handlers.at(task.handlers);
    for (int signal = 1; signal <= 64; ++signal) {
      const auto& action = handlers.actions[static_cast<size_t>(signal - 1)];
      if (!has_action(signal) || action == model::SignalAction{}) continue;
      const KernelAction wanted{action.handler, action.flags, action.restorer, action.mask};
      calls.push_back(call(SYS_rt_sigaction, signal, plan::struct_in(wanted), 0, sizeof(uint64_t)));
    }
    if (!calls.empty()) sink.perform("signal handlers", "signals.handlers", std::move(calls));
  }

  void contribute(plan::Stage stage, const model::Application& application, const model::Task& task,
                  const model::Thread& thread, plan::Sink& sink) const override {
    if (stage == plan::Stage::thread && thread.alternate_stack != model::AlternateStack{}) {
      const auto& wanted = thread.alternate_stack;
      stack_t stack{};
      stack.ss_sp = reinterpret_cast<void*>(wanted.address);
      stack.ss_flags = static_cast<int>(wanted.flags);
      stack.ss_size = wanted.size;
      sink.perform("alternate signal stack", "signals.stack", {call(SYS_sigaltstack, plan::struct_in(stack), 0)});
    }
    if (stage != plan::Stage::final) return;
    plan::Calls calls;
    for (const auto& info : thread.pending) {
      calls.push_back(
          call(SYS_rt_tgsigqueueinfo, own_number(task), own_number(thread), model::signal_of(info), plan::In{info}));
    }
    if (thread.tid == leader_of(task.pid)) {
      for (const auto& info : task.pending)
        calls.push_back(call(SYS_rt_sigqueueinfo, own_number(task), model::signal_of(info), plan::In{info}));
    }
    if (!calls.empty()) sink.perform("pending signals", "signals.pending", std::move(calls));
    if (!thread.has_ended()) return;
    const auto& handlers = application.signal_handlers.at(task.handlers);
    const uint64_t mask = mask_of_ended(thread.blocked_signals, ignored_by(handlers), task.pending);
    sink.perform("mask of an ended leader", "signals.ended_mask",
                 {call(SYS_rt_sigprocmask, SIG_SETMASK, plan::struct_in(mask), 0, sizeof mask)});
  }
};

}  // namespace

Status capture_pending_signals(const ProcessView& view, model::Task& task) {
  std::set<Tid> notified;
  for (const auto& timer : task.posix_timers) notified.insert(timer.notified_thread);
  for (size_t i = 0; i < task.threads.size(); ++i) {
    auto& thread = task.threads[i];
    if (thread.has_ended()) continue;
    // Whoever else of the tree might have sent one to a single thread is stopped.
    if (TRY(view.status(i))->sig_pending != 0 || notified.contains(thread.tid))
      thread.pending = TRY(kernel::ptrace_peek_siginfo(view.host_tids[i], false));
    take_absolute(thread.pending, task);
  }
  task.pending = TRY(kernel::ptrace_peek_siginfo(view.witness(), true));
  take_absolute(task.pending, task);
  if (!task.leader_has_ended()) return {};
  const auto& status = *TRY(view.status(0));
  auto& mask = task.threads.front().blocked_signals;
  mask = mask_of_ended(status.blocked, status.ignored | (by_default_ignored & ~status.caught), task.pending);
  return {};
}

const TaskRoom& signals_room() {
  static const SignalsRoom room;
  return room;
}

}  // namespace stasis::resource
