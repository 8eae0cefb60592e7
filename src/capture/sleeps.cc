#include "capture/sleeps.h"

#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <random>
#include <string>

#include <fmt/format.h>

#include "capture/arch/x86_64/task_code.h"
#include "capture/timer_match.h"
#include "kernel/process.h"
#include "kernel/timed_calls.h"

namespace stasis::capture {
namespace {

constexpr int64_t ns_per_s = 1'000'000'000;

/// A thread whose call goes on by its restart block.
struct Sleeper {
  Tracee* tracee = nullptr;
  model::Thread* thread = nullptr;
  uint64_t* pending = nullptr;  ///< its own signals, by the view
  uint64_t number = 0;          ///< SYS_restart_syscall as long as it is not known what that restarts
  kernel::TimedRequest request;
  bool has_ended = false;  ///< the call came to its end when it was looked at
};
using Sleepers = std::vector<Sleeper*>;

std::optional<uint64_t> read_duration(pid_t pid, uint64_t address) {
  timespec time{};
  if (!kernel::read_memory(pid, RemoteAddress{address}, {reinterpret_cast<uint8_t*>(&time), sizeof time})) return {};
  if (time.tv_sec < 0 || time.tv_nsec < 0 || time.tv_nsec >= ns_per_s) return std::nullopt;
  // The kernel saturates, too (timespec64_to_ktime).
  if (time.tv_sec >= std::numeric_limits<int64_t>::max() / ns_per_s) return std::numeric_limits<int64_t>::max();
  return static_cast<uint64_t>(time.tv_sec * ns_per_s + time.tv_nsec);
}

void note(const Sleeper& sleeper, std::optional<uint64_t> remaining) {
  if (remaining) sleeper.thread->interrupted_call = {sleeper.request.number, *remaining};
}

bool is_recognised(Sleeper& sleeper) {
  const auto request = kernel::timed_request(sleeper.number, call_arguments(sleeper.tracee->general()));
  if (request) sleeper.request = *request;
  return request.has_value();
}

bool is_a_restart(const Sleeper& sleeper) { return sleeper.number == SYS_restart_syscall; }
/// The other calls have a place where they note what remains whenever they are interrupted.
bool needs_its_timer(const Sleeper& sleeper) { return sleeper.request.remainder_at == 0; }

/// Registers for making again what a restart block stands for. An image has no block, and a restored thread has one
/// that the agent's calls have left: a call that is not known ends as an interrupted one.
Bytes made_again(ByteView general, std::optional<uint64_t> number) {
  return number ? plain_registers(with_call_number(general, *number), Resumption::image, Handler::none)
                : plain_registers(general, Resumption::image, Handler::restarts);
}

/// Those that must be looked at: what has been restarted before, for the number of its call alone; what notes its
/// remainder, because it may have been stopped long before it was seized.
Result<std::vector<Sleeper>> find_sleepers(std::vector<LiveProcess>& processes, resource::CaptureContext& context) {
  std::vector<Sleeper> found;
  for (auto& process : processes) {
    auto& task = *context.application.find(process.pid);
    for (size_t index = 0; index < task.threads.size(); ++index) {
      if (task.threads[index].has_ended()) continue;
      auto& tracee = process.tracee(index);
      const auto number = restartable_call(tracee.general());
      if (!number) continue;
      // A signal that waits would end the call at once.
      auto& status = *process.view.statuses[index];
      if (((status.sig_pending | status.shared_pending) & ~tracee.signal_mask()) != 0) {
        if (*number == SYS_restart_syscall)
          task.threads[index].registers.general =
              made_again(tracee.general(), kernel::call_behind_restart({}, call_arguments(tracee.general())));
        continue;
      }
      Sleeper sleeper{
          .tracee = &tracee, .thread = &task.threads[index], .pending = &status.sig_pending, .number = *number};
      if (is_a_restart(sleeper) || is_recognised(sleeper)) found.push_back(sleeper);
    }
  }
  const auto in_vain = [](const Sleeper& sleeper) { return !is_a_restart(sleeper) && needs_its_timer(sleeper); };
  if (!found.empty() && !kernel::may_read_timer_list()) std::erase_if(found, in_vain);
  return found;
}

class Measurement {
 public:
  Measurement(std::vector<Sleeper> sleepers, const AtPoint& at_point, Clock::time_point deadline)
      : sleepers_(std::move(sleepers)), at_point_(at_point), deadline_(deadline) {}

  Status run() {
    Sleepers all;
    for (auto& sleeper : sleepers_) all.push_back(&sleeper);
    const bool by_timers = std::ranges::any_of(all, [](const auto* one) { return needs_its_timer(*one); });
    const auto list = TRY(look_at(all, by_timers));
    Sleepers timed;
    for (auto* sleeper : all) {
      if (sleeper->has_ended || !is_recognised(*sleeper)) continue;
      const auto& request = sleeper->request;
      if (!needs_its_timer(*sleeper))
        note(*sleeper, read_duration(sleeper->tracee->tid(), request.remainder_at));
      else if (request.clock)
        timed.push_back(sleeper);
    }
    return list ? match(timed, *list) : Status();
  }

 private:
  Status match(const Sleepers& timed, const kernel::TimerList& all_asleep) {
    std::vector<TimerMatch::Sleep> sleeps;
    for (const auto* sleeper : timed) {
      const auto& request = sleeper->request;
      const auto duration =
          request.duration_ns ? request.duration_ns : read_duration(sleeper->tracee->tid(), request.duration_at);
      sleeps.push_back({*request.clock, duration.value_or(std::numeric_limits<int64_t>::max()), request.exact});
    }
    TimerMatch match(std::move(sleeps), all_asleep, std::random_device()());
    while (const auto round = match.next_round()) {
      Sleepers some;
      for (size_t index = 0; index < timed.size(); ++index) {
        if ((*round)[index] && !timed[index]->has_ended) some.push_back(timed[index]);
      }
      if (const auto list = TRY(look_at(some, true))) match.learn(*round, *list);
    }
    for (size_t index = 0; index < timed.size(); ++index) {
      if (!timed[index]->has_ended) note(*timed[index], match.remaining(index));
    }
    return {};
  }

  /// The timers that are armed while just these threads sleep (perhaps none of them); nothing if they are not wanted,
  /// or the list cannot be read.
  Result<std::optional<kernel::TimerList>> look_at(const Sleepers& sleepers, bool timers_wanted) {
    for (const auto* sleeper : sleepers) TRY(sleeper->tracee->run(Tracee::Run::to_system_call));
    for (const auto* sleeper : sleepers) {
      TRY(sleeper->tracee->wait_for_system_call(waiting_, deadline_));
      TRY(sleeper->tracee->run(Tracee::Run::to_system_call));
    }
    for (auto* sleeper : sleepers) {
      TRY(wait_until_asleep(*sleeper));
      if (is_a_restart(*sleeper)) TRY(find_call(*sleeper));
    }
    at_point_("sleeping");
    std::optional<kernel::TimerList> list;
    if (timers_wanted) {
      if (auto read = kernel::read_timer_list()) list = std::move(*read);
    }
    for (const auto* sleeper : sleepers) TRY(sleeper->tracee->interrupt());
    for (auto* sleeper : sleepers) TRY(take_back(*sleeper));
    return list;
  }

  /// /proc/PID/syscall looks when the thread has left the processor (kernel/sched/core.c, wait_task_inactive): its
  /// timer is armed by then. Whoever has been woken and did not run yet (TASK_WAKING) has left it, too, but does not
  /// count as asleep. False: its call has come to its end, or the time has.
  Result<bool> wait_until_asleep(const Sleeper& sleeper) const {
    const pid_t pid = sleeper.tracee->pid(), tid = sleeper.tracee->tid();
    const auto file = fmt::format("task/{}/syscall", tid);
    for (; Clock::now() < deadline_; sched_yield()) {
      const char state = TRY(kernel::read_thread_stat(pid, tid)).state;
      if (state == 'S' && !TRY(kernel::read_record(pid, file)).starts_with("running")) return true;
      if (state != 'S' && state != 'R' && state != 'D') return false;
    }
    return false;
  }

  /// Which call it is that was restarted. The thread may be between two sleeps just then, or sleep for another reason;
  /// if it does not run at all for a while, it cannot be looked at for so long.
  Status find_call(Sleeper& sleeper) const {
    constexpr int looks = 100;
    const pid_t pid = sleeper.tracee->pid(), tid = sleeper.tracee->tid();
    for (int look = 0; look < looks; ++look) {
      if (look > 0) usleep(100);
      const bool asleep = TRY(wait_until_asleep(sleeper));
      const auto wchan = TRY(kernel::read_record(pid, fmt::format("task/{}/wchan", tid)));
      const auto number = kernel::call_behind_restart(wchan, call_arguments(sleeper.tracee->general()));
      if (number) sleeper.number = *number;
      if (number || !asleep) break;
    }
    return {};
  }

  Status take_back(Sleeper& sleeper) const {
    auto& tracee = *sleeper.tracee;
    TRY(tracee.wait_for_system_call(waiting_, deadline_));
    *sleeper.pending |= tracee.send_kept_signals();
    sleeper.has_ended = !restartable_call(TRY(tracee.registers()));
    auto& general = sleeper.thread->registers.general;
    if (sleeper.has_ended) {
      TRY(tracee.save(tracee.signal_mask()));
      general = plain_registers(tracee.general(), Resumption::image, Handler::none);
    } else {
      general = made_again(tracee.general(), is_a_restart(sleeper) ? std::nullopt : std::optional(sleeper.number));
    }
    return {};
  }

  std::vector<Sleeper> sleepers_;
  const AtPoint& at_point_;
  Clock::time_point deadline_;
  Waiting waiting_;
};

}  // namespace

Status measure_sleeps(std::vector<LiveProcess>& processes, resource::CaptureContext& context, const AtPoint& at_point,
                      Clock::time_point deadline) {
  auto sleepers = TRY(find_sleepers(processes, context));
  if (sleepers.empty()) return {};
  return Measurement(std::move(sleepers), at_point, deadline).run();
}

}  // namespace stasis::capture
