// Interval timers and POSIX timers of a process.
//
// A POSIX timer's id is given by the kernel. Since Linux 6.15 PR_TIMER_CREATE_RESTORE_IDS lets timer_create take the id
// it is told; before, ids are handed out in ascending order, so timers are created and deleted until the wanted one
// comes up (kernel/time/posix-timers.c). Either way the next id that the process gets is the one after its highest;
// where the kernel's own counter stood cannot be read.
//
// Overruns are counted by the kernel when a timer's signal is taken, by the thread that gets it: so a timer with
// overruns is started by that thread, in the past, and its signal is taken at once (agent.cc, start_overrun_timer). A
// clock that is younger than so many periods (the CPU time of a new process) leaves the count at 0.
//
// Cannot be put back: whether a timer was set by an absolute time (it is set by what remained; a later change of the
// clock no longer moves it).
//
// CLOCK_THREAD_CPUTIME_ID means the thread that created the timer, and the kernel does not tell which. Programs with
// more than one thread use it together with SIGEV_THREAD_ID for the same thread: that one is taken. All timers are
// created by the leader, who names such a thread by its own clock id; `capture` translates it back.
#include "resource/timers.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>

#include "kernel/proc.h"
#include "model/pid_namespaces.h"

namespace stasis::resource {
namespace {

using plan::call;
using Expected = plan::Expectation::Kind;

constexpr int restore_ids = 77, restore_ids_off = 0, restore_ids_on = 1, restore_ids_get = 2;  // linux/prctl.h
constexpr uint64_t nanoseconds = 1'000'000'000, microseconds = 1'000'000, ns_per_us = 1'000;
constexpr int most_timers = 1 << 20, most_created_in_vain = 1 << 16;

bool kernel_takes_ids() {
  static const bool takes = prctl(restore_ids, restore_ids_get, 0, 0, 0) >= 0;
  return takes;
}

/// A CPU clock carries an id and what it counts (include/linux/posix-timers_types.h): ~id << 3 | per thread (4) | which
/// (0–2). 3 in the place of "which" is a descriptor's clock. Ids 2 and 3 are those of the caller, as are ids with a
/// number of 0.
struct CpuClock {
  pid_t id = 0;
  bool per_thread = false;
  int which = 0;
};
constexpr int scheduler_time = 2;

std::optional<CpuClock> cpu_clock(int32_t clock) {
  if (clock == CLOCK_PROCESS_CPUTIME_ID) return CpuClock{0, false, scheduler_time};
  if (clock == CLOCK_THREAD_CPUTIME_ID) return CpuClock{0, true, scheduler_time};
  if (clock >= 0 || (clock & 3) == 3) return std::nullopt;
  return CpuClock{static_cast<pid_t>(~(clock >> 3)), (clock & 4) != 0, clock & 3};
}
constexpr int32_t clock_of(const CpuClock& clock) {
  return static_cast<int32_t>((~static_cast<uint32_t>(clock.id) << 3) | (clock.per_thread ? 4u : 0u) |
                              static_cast<uint32_t>(clock.which));
}

const model::Thread* thread_of(const model::Task& task, Tid tid) {
  const auto found = std::ranges::find(task.threads, tid, &model::Thread::tid);
  return found == task.threads.end() ? nullptr : &*found;
}
/// By the number that the task itself knows: clocks are named with those.
bool has_thread_numbered(const model::Task& task, pid_t number) {
  return std::ranges::any_of(task.threads, [&](const auto& thread) { return own_number(thread) == number; });
}

timespec to_timespec(uint64_t ns) {
  return {static_cast<time_t>(ns / nanoseconds), static_cast<long>(ns % nanoseconds)};
}
timeval to_timeval(uint64_t us) {
  return {static_cast<time_t>(us / microseconds), static_cast<suseconds_t>(us % microseconds)};
}

/// struct sigevent as the kernel has it.
struct Event {
  uint64_t value;
  int32_t signal, notification, thread;
  char padding[64 - 20];
};
static_assert(sizeof(Event) == 64);

/// As the leader has to create it, with ids as its own pid namespace has them.
model::PosixTimer for_leader(const model::Task& task, model::PosixTimer timer) {
  if (timer.notification != SIGEV_THREAD_ID) return timer;
  const auto* notified = thread_of(task, timer.notified_thread);
  if (notified == nullptr) {
    timer.notification = SIGEV_NONE;  // its thread has ended: it notifies nobody any more
    timer.notified_thread = {};
    return timer;
  }
  const auto clock = cpu_clock(timer.clock);
  if (clock && clock->per_thread && clock->id == 0 && timer.notified_thread != leader_of(task.pid)) {
    timer.clock = clock_of({own_number(*notified), true, clock->which});
  }
  timer.notified_thread = Tid{own_number(*notified)};
  return timer;
}

plan::Calls create_timer(const model::PosixTimer& timer) {
  Event event{};
  event.value = timer.value;
  event.signal = timer.signal;
  event.notification = timer.notification;
  event.thread = timer.notified_thread.value;
  return {call(SYS_timer_create, timer.clock, plan::struct_in(event), plan::InOut{bytes_of(timer.id)})};
}

plan::Calls arm_timer(const model::PosixTimer& timer) {
  const itimerspec when{to_timespec(timer.interval_ns), to_timespec(timer.remaining_ns)};
  if (timer.remaining_ns == 0 && timer.interval_ns == 0) return {};
  return {call(SYS_timer_settime, timer.id, 0, plan::struct_in(when), 0)};
}

plan::Call start_overrun_timer(const model::PosixTimer& timer) {
  const itimerspec when{to_timespec(timer.interval_ns), to_timespec(timer.remaining_ns)};
  return call(plan::Call::start_overrun_timer, timer.id, timer.clock, plan::struct_in(when), timer.signal,
              timer.overrun);
}

bool has_sent(const std::vector<model::PendingSignal>& queue, int signal, int code, int timer = 0) {
  return std::ranges::any_of(queue, [&](const model::PendingSignal& bytes) {
    siginfo_t info;
    std::memcpy(&info, bytes.data(), sizeof info);
    return info.si_signo == signal && info.si_code == code && (code != SI_TIMER || info.si_timerid == timer);
  });
}

/// Of a timer that was still to run for so long before it expired.
uint64_t after_expiry(uint64_t remaining, uint64_t interval) {
  return remaining == 0 || interval == 0 ? 0 : remaining + interval;
}

class TimersRoom final : public TaskRoom {
 public:
  std::string_view name() const override { return "timers"; }

  Status capture(CaptureContext& context, const ProcessView& view, model::Task& task) const override {
    for (const auto& found : TRY(view.facts())->timers) {
      model::PosixTimer timer;
      timer.id = found.id, timer.clock = found.clock, timer.notification = found.notification;
      timer.signal = found.signal, timer.value = found.value;
      if (found.notification == SIGEV_THREAD_ID) {
        const auto thread = context.host_to_tree.find(found.notified);
        timer.notified_thread = Tid{thread != context.host_to_tree.end() ? thread->second : found.notified};
        const auto clock = cpu_clock(timer.clock);
        const auto* known = thread_of(task, timer.notified_thread);
        if (clock && clock->per_thread && known != nullptr && clock->id == own_number(*known))
          timer.clock = clock_of({0, true, clock->which});
      }
      warn_of_thread_clock(context, task, timer);
      task.posix_timers.push_back(timer);
    }
    std::ranges::sort(task.posix_timers, {}, &model::PosixTimer::id);
    return {};
  }

  Status ask(CaptureContext&, model::Task& task, Inquiry& inquiry) const override {
    for (int which = 0; which < 3; ++which) {
      auto& timer = task.interval_timers[static_cast<size_t>(which)];
      inquiry.ask(
          call(SYS_getitimer, which, plan::Out{sizeof(itimerval)}), [&timer](const Inquiry::Answer& answer) -> Status {
            itimerval now{};
            std::memcpy(&now, answer.out.at(0).data(), sizeof now);
            timer.interval_us = static_cast<uint64_t>(now.it_interval.tv_sec) * microseconds +
                                static_cast<uint64_t>(now.it_interval.tv_usec);
            timer.remaining_us =
                static_cast<uint64_t>(now.it_value.tv_sec) * microseconds + static_cast<uint64_t>(now.it_value.tv_usec);
            return {};
          });
    }
    for (auto& timer : task.posix_timers) {
      inquiry.ask(call(SYS_timer_gettime, timer.id, plan::Out{sizeof(itimerspec)}),
                  [&timer](const Inquiry::Answer& answer) -> Status {
                    itimerspec now{};
                    std::memcpy(&now, answer.out.at(0).data(), sizeof now);
                    timer.interval_ns = static_cast<uint64_t>(now.it_interval.tv_sec) * nanoseconds +
                                        static_cast<uint64_t>(now.it_interval.tv_nsec);
                    timer.remaining_ns = static_cast<uint64_t>(now.it_value.tv_sec) * nanoseconds +
                                         static_cast<uint64_t>(now.it_value.tv_nsec);
                    return {};
                  });
      inquiry.ask(call(SYS_timer_getoverrun, timer.id), [&timer](const Inquiry::Answer& answer) -> Status {
        timer.overrun = static_cast<int32_t>(answer.result);
        return {};
      });
    }
    return {};
  }

  Status encode(const model::Application&, const model::Task& task, image::TaskRecords& records) const override {
    auto& out = *records.cores.at(0).mutable_tc()->mutable_timers();
    itimer_entry* const entries[] = {out.mutable_real(), out.mutable_virt(), out.mutable_prof()};
    for (size_t i = 0; i < 3; ++i) {
      const auto& timer = task.interval_timers[i];
      entries[i]->set_isec(timer.interval_us / microseconds), entries[i]->set_iusec(timer.interval_us % microseconds);
      entries[i]->set_vsec(timer.remaining_us / microseconds), entries[i]->set_vusec(timer.remaining_us % microseconds);
    }
    for (const auto& timer : task.posix_timers) {
      auto& entry = *out.add_posix();
      entry.set_it_id(static_cast<uint32_t>(timer.id)), entry.set_clock_id(static_cast<uint32_t>(timer.clock));
      entry.set_si_signo(static_cast<uint32_t>(timer.signal)),
          entry.set_it_sigev_notify(static_cast<uint32_t>(timer.notification));
      entry.set_sival_ptr(timer.value), entry.set_overrun(static_cast<uint32_t>(timer.overrun));
      entry.set_isec(timer.interval_ns / nanoseconds), entry.set_insec(timer.interval_ns % nanoseconds);
      entry.set_vsec(timer.remaining_ns / nanoseconds), entry.set_vnsec(timer.remaining_ns % nanoseconds);
      if (timer.notified_thread.value != 0) entry.set_notify_thread_id(timer.notified_thread.value);
    }
    return {};
  }

  Status decode(const image::TaskRecords& records, model::Application&, model::Task& task) const override {
    const std::string subject = fmt::format("core-{}.img", task.pid);
    const auto& in = records.cores.at(0).tc().timers();
    const itimer_entry* const entries[] = {&in.real(), &in.virt(), &in.prof()};
    for (size_t i = 0; i < 3; ++i) {
      const auto interval = TRY(total(entries[i]->isec(), entries[i]->iusec(), microseconds, subject));
      const auto remaining = TRY(total(entries[i]->vsec(), entries[i]->vusec(), microseconds, subject));
      task.interval_timers[i] = {interval, remaining};
    }
    if (in.posix_size() > most_timers) return fail(Error::invalid("decode timers", "too many POSIX timers", subject));
    for (const auto& entry : in.posix()) {
      model::PosixTimer timer;
      if (entry.it_id() > INT32_MAX)
        return fail(
            Error::invalid("decode timers", fmt::format("timer id {} is out of range", entry.it_id()), subject));
      timer.id = static_cast<int32_t>(entry.it_id()), timer.clock = static_cast<int32_t>(entry.clock_id());
      timer.signal = static_cast<int32_t>(entry.si_signo()),
      timer.notification = static_cast<int32_t>(entry.it_sigev_notify());
      timer.value = entry.sival_ptr(), timer.overrun = static_cast<int32_t>(entry.overrun());
      timer.interval_ns = TRY(total(entry.isec(), entry.insec(), nanoseconds, subject));
      timer.remaining_ns = TRY(total(entry.vsec(), entry.vnsec(), nanoseconds, subject));
      timer.notified_thread = Tid{entry.notify_thread_id()};
      task.posix_timers.push_back(timer);
    }
    std::ranges::sort(task.posix_timers, {}, &model::PosixTimer::id);
    const auto twice = std::ranges::adjacent_find(task.posix_timers, {}, &model::PosixTimer::id);
    if (twice != task.posix_timers.end())
      return fail(Error::invalid("decode timers", fmt::format("timer id {} occurs twice", twice->id), subject));
    return {};
  }

  void validate(const model::Application& application, const model::Task& task,
                Diagnostics& diagnostics) const override {
    for (const auto& timer : task.posix_timers) {
      const auto clock = cpu_clock(timer.clock);
      if (!clock || clock->id == 0 ||
          (clock->per_thread ? has_thread_numbered(task, clock->id) : exists(application, task, clock->id)))
        continue;
      diagnostics.refuse(fmt::format("task {} '{}'", task.pid, task.name),
                         fmt::format("POSIX timer {} runs on the CPU time of {} {}, which is not saved", timer.id,
                                     clock->per_thread ? "thread" : "task", clock->id),
                         "Such a timer cannot be restored");
    }
    if (kernel_takes_ids() || task.posix_timers.empty() || task.posix_timers.back().id < most_created_in_vain) return;
    diagnostics.refuse(fmt::format("task {} '{}'", task.pid, task.name),
                       fmt::format("POSIX timer {} would take {} attempts on this kernel", task.posix_timers.back().id,
                                   task.posix_timers.back().id),
                       "restore on Linux 6.15 or later (PR_TIMER_CREATE_RESTORE_IDS)");
  }

  void contribute(plan::Stage stage, const model::Application&, const model::Task& task, const model::Thread& thread,
                  plan::Sink& sink) const override {
    const bool leads = thread.tid == leader_of(task.pid);
    if (stage == plan::Stage::thread && leads) create(task, sink);
    if (stage == plan::Stage::final) start(task, thread, leads, sink);
  }

 private:
  /// By the leader, when all threads are there: some are notified by name.
  static void create(const model::Task& task, plan::Sink& sink) {
    auto timers = task.posix_timers;
    for (auto& timer : timers) timer = for_leader(task, timer);
    if (auto calls = creating(timers); !calls.empty())
      sink.perform("POSIX timers", "timers.posix", std::move(calls), needs(timers));
  }

  static void start(const model::Task& task, const model::Thread& thread, bool leads, plan::Sink& sink) {
    const auto started = [&] { return fmt::format("overruns counted in {}", task.pid); };
    plan::Calls overruns = overruns_of(task, thread.tid);
    const bool counts = !overruns.empty();
    if (counts) sink.perform("overruns of POSIX timers", "timers.overruns", std::move(overruns));
    if (!leads) {
      if (counts) sink.add(plan::Post{started()});
      return;
    }
    // Signals to the whole process must not be sent before: another thread would take them for its timer's.
    std::set<Tid> others;
    for (const auto& timer : task.posix_timers) others.insert(model::overruns_belong_to(task, timer));
    others.erase(Tid{});
    others.erase(thread.tid);
    if (!others.empty()) sink.add(plan::Await{started(), static_cast<uint32_t>(others.size())});
    plan::Calls arming;
    for (const auto& timer : task.posix_timers) {
      if (model::overruns_belong_to(task, timer).value != 0) continue;
      if (auto calls = arm_timer(timer); !calls.empty()) arming.push_back(std::move(calls.front()));
    }
    if (!arming.empty()) sink.perform("start POSIX timers", "timers.armed", std::move(arming));
    start_interval_timers(task, sink);
  }

  static void start_interval_timers(const model::Task& task, plan::Sink& sink) {
    plan::Calls intervals;
    for (int which = 0; which < 3; ++which) {
      const auto& timer = task.interval_timers[static_cast<size_t>(which)];
      if (timer == model::IntervalTimer{}) continue;
      // A real timer that has fired is started again when its signal is taken (kernel/signal.c, dequeue_signal): until
      // then nothing remains of it, but its interval does.
      const uint64_t remaining = timer.remaining_us != 0 ? timer.remaining_us : timer.interval_us;
      const itimerval when{to_timeval(timer.interval_us), to_timeval(remaining)};
      intervals.push_back(call(SYS_setitimer, which, plan::struct_in(when), 0));
    }
    if (!intervals.empty()) sink.perform("interval timers", "timers.interval", std::move(intervals));
  }

  static void warn_of_thread_clock(CaptureContext& context, const model::Task& task, const model::PosixTimer& timer) {
    const auto clock = cpu_clock(timer.clock);
    const bool unknown = clock && clock->per_thread && clock->id == 0 && task.threads.size() > 1 &&
                         timer.notification != SIGEV_THREAD_ID;
    if (!unknown) return;
    context.diagnostics.warn(fmt::format("task {} '{}', POSIX timer {}", task.pid, task.name, timer.id),
                             "it runs on the CPU time of a thread that the kernel does not name",
                             "It is restored as a timer on the CPU time of the first thread");
  }

  /// A live process with this number in the pid namespace of `task`.
  static bool exists(const model::Application& application, const model::Task& task, pid_t number) {
    const model::PidNamespaces spaces(application);
    return std::ranges::any_of(application.tasks, [&](const model::Task& other) {
      return other.state != model::TaskState::zombie && spaces.number(other.pid.value, task.pid_namespace) == number;
    });
  }

  static std::vector<std::string> needs(const std::vector<model::PosixTimer>& timers) {
    const bool wakes = std::ranges::any_of(timers, [](const auto& timer) {
      return timer.clock == CLOCK_REALTIME_ALARM || timer.clock == CLOCK_BOOTTIME_ALARM;
    });
    return wakes ? std::vector<std::string>{"CAP_WAKE_ALARM"} : std::vector<std::string>{};
  }

  static Result<uint64_t> total(uint64_t seconds, uint64_t rest, uint64_t unit, const std::string& subject) {
    constexpr uint64_t longest = 1ull << 33;  // 272 years
    if (seconds > longest || rest >= unit)
      return fail(Error::invalid("decode timers", "a time is out of range", subject));
    return seconds * unit + rest;
  }

  /// The calls that start the timers whose overruns this thread counts.
  static plan::Calls overruns_of(const model::Task& task, Tid tid) {
    plan::Calls calls;
    for (const auto& timer : task.posix_timers) {
      if (model::overruns_belong_to(task, timer) == tid) calls.push_back(start_overrun_timer(for_leader(task, timer)));
    }
    return calls;
  }

  static plan::Calls creating(const std::vector<model::PosixTimer>& timers) {
    plan::Calls calls;
    if (timers.empty()) return calls;
    const auto append = [&](plan::Calls more) { std::ranges::move(more, std::back_inserter(calls)); };
    if (kernel_takes_ids()) {
      calls.push_back(call(SYS_prctl, restore_ids, restore_ids_on, 0, 0, 0));
      for (const auto& timer : timers) append(create_timer(timer));
      calls.push_back(call(SYS_prctl, restore_ids, restore_ids_off, 0, 0, 0));
    } else {
      int32_t next = 0;
      for (const auto& timer : timers) {
        for (; next < timer.id; ++next) {
          model::PosixTimer passing = timer;
          passing.id = next;
          append(create_timer(passing));
          calls.push_back(call(SYS_timer_delete, next));
        }
        append(create_timer(timer));
        ++next;
      }
    }
    return calls;
  }
};

}  // namespace

void forget_expired(std::chrono::nanoseconds passed, model::Task& task) {
  const auto passed_ns = static_cast<uint64_t>(passed.count());
  constexpr int signals[] = {SIGALRM, SIGVTALRM, SIGPROF};
  for (size_t which = 0; which < 3; ++which) {
    auto& timer = task.interval_timers[which];
    if (timer.remaining_us > passed_ns / ns_per_us + 1 || !has_sent(task.pending, signals[which], SI_KERNEL)) continue;
    timer.remaining_us = after_expiry(timer.remaining_us, timer.interval_us);
  }
  for (auto& timer : task.posix_timers) {
    if (timer.remaining_ns > passed_ns) continue;
    const auto* thread = thread_of(task, timer.notified_thread);
    if (has_sent(thread != nullptr ? thread->pending : task.pending, timer.signal, SI_TIMER, timer.id))
      timer.remaining_ns = after_expiry(timer.remaining_ns, timer.interval_ns);
  }
}

const TaskRoom& timers_room() {
  static const TimersRoom room;
  return room;
}

}  // namespace stasis::resource
