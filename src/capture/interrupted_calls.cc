// Calls in which threads were stopped, and the signals that end them.
//
// A handler runs before the call is made again, and whether the call is made again at all is the handler's: pause(2)
// would wait for the next signal otherwise. The kernel decides that when it takes the first signal that is handled
// (arch/x86/kernel/signal.c, handle_signal). For an image it is decided here, by the queues that the image has: a
// signal may have come after the registers were read, from a timer.
#include <signal.h>

#include <bit>

#include "capture/arch/x86_64/task_code.h"
#include "capture/walk.h"
#include "kernel/signal_bit.h"

namespace stasis::capture {
namespace {

using kernel::signal_bit;

constexpr uint64_t of_the_processor = signal_bit(SIGSEGV) | signal_bit(SIGBUS) | signal_bit(SIGILL) |
                                      signal_bit(SIGTRAP) | signal_bit(SIGFPE) | signal_bit(SIGSYS);

/// Signals that a call like sigsuspend or ppoll lets through for its own time alone come again when it is made again.
/// Their mask is in SigBlk, the task's in PTRACE_GETSIGMASK.
uint64_t delivered_at_once(const kernel::StatusInfo& status, uint64_t signal_mask) {
  return ~(status.blocked | signal_mask);
}

uint64_t signals_in(const std::vector<model::PendingSignal>& queue) {
  uint64_t signals = 0;
  for (const auto& info : queue) signals |= signal_bit(model::signal_of(info));
  return signals;
}

/// The one that the kernel takes first (kernel/signal.c, next_signal).
Handler first_handler(uint64_t signals, const model::SignalHandlers& handlers) {
  if (signals == 0) return Handler::none;
  const uint64_t urgent = signals & of_the_processor;
  const auto index = static_cast<size_t>(std::countr_zero(urgent != 0 ? urgent : signals));
  return (handlers.actions[index].flags & SA_RESTART) != 0 ? Handler::restarts : Handler::interrupts;
}

}  // namespace

Handler waiting_handler(const kernel::StatusInfo& status, uint64_t signal_mask) {
  const uint64_t pending = status.sig_pending | status.shared_pending;
  const bool waits = (pending & status.caught & delivered_at_once(status, signal_mask)) != 0;
  return waits ? Handler::restarts : Handler::none;
}

void end_interrupted_calls(std::vector<LiveProcess>& processes, resource::CaptureContext& context) {
  for (auto& process : processes) {
    if (process.frozen.zombie) continue;
    auto& task = *context.application.find(process.pid);
    const auto& handlers = context.application.signal_handlers.at(task.handlers);
    const uint64_t shared = signals_in(task.pending);
    for (size_t index = 0; index < task.threads.size(); ++index) {
      auto& thread = task.threads[index];
      // What is known to sleep for a duration gets a restart block, and the kernel decides after all.
      if (thread.has_ended() || thread.interrupted_call || (shared == 0 && thread.pending.empty())) continue;
      const auto& tracee = process.tracee(index);
      const auto& status = *process.view.statuses[index];
      const uint64_t handled = status.caught & delivered_at_once(status, tracee.signal_mask());
      const uint64_t own = signals_in(thread.pending) & handled;
      // Any thread that lets it through may be the one that takes a signal to the process.
      const auto handler = first_handler(own != 0 ? own : shared & handled, handlers);
      if (handler != Handler::none)
        thread.registers.general = plain_registers(tracee.general(), Resumption::image, handler);
    }
  }
}

}  // namespace stasis::capture
