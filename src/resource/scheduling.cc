// Scheduling of each thread: policy and its parameters, nice, affinity, I/O priority, timer slack.
//
// A real-time thread has a nice value too, which counts again when it becomes an ordinary one; sched_getattr and
// sched_setattr do not speak of it then. An affinity to all CPUs there are is none: it is saved as an empty list, and
// on a machine with more CPUs the thread may use them.
#include "resource/scheduling.h"

#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <optional>

#include "base/parallel.h"
#include "resource/host.h"

namespace stasis::resource {
namespace {

using plan::call;

/// struct sched_attr, first version (sched_setattr(2)).
struct Attributes {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;
};
static_assert(sizeof(Attributes) == 48);

constexpr uint32_t policy_fifo = 1, policy_round_robin = 2, policy_deadline = 6;
constexpr int io_priority_of_process = 1, io_priority_class_shift = 13, io_priority_real_time = 1;

bool is_real_time(uint32_t policy) {
  return policy == policy_fifo || policy == policy_round_robin || policy == policy_deadline;
}

constexpr size_t most_cpus = 8192;  // NR_CPUS of the largest configurations

Result<std::vector<uint32_t>> read_affinity(pid_t tid) {
  std::array<uint8_t, most_cpus / 8> mask{};
  const long bytes = syscall(SYS_sched_getaffinity, tid, mask.size(), mask.data());
  if (bytes < 0) return fail_errno("sched_getaffinity");
  std::vector<uint32_t> cpus;
  for (uint32_t cpu = 0; cpu < static_cast<uint32_t>(bytes) * 8; ++cpu) {
    if ((mask[cpu / 8] >> (cpu % 8)) & 1) cpus.push_back(cpu);
  }
  return cpus;
}

bool all_cpus(const std::vector<uint32_t>& cpus) {
  static const auto online = static_cast<size_t>(sysconf(_SC_NPROCESSORS_ONLN));
  return cpus.size() >= online;
}

Status read_scheduling(pid_t tid, model::Scheduling& s) {
  Attributes now{};
  if (syscall(SYS_sched_getattr, tid, &now, sizeof now, 0) != 0) return fail_errno("sched_getattr");
  s.policy = now.policy, s.flags = now.flags, s.nice = now.nice, s.priority = now.priority;
  // For other policies the kernel shows its own slice as the runtime: setting it would make it a request.
  if (now.policy == policy_deadline) s.runtime = now.runtime, s.deadline = now.deadline, s.period = now.period;
  errno = 0;
  if (is_real_time(s.policy)) s.nice = getpriority(PRIO_PROCESS, static_cast<id_t>(tid));
  if (errno != 0) return fail_errno("getpriority");
  s.cpus = TRY(read_affinity(tid));
  if (all_cpus(s.cpus)) s.cpus.clear();
  const long io = syscall(SYS_ioprio_get, io_priority_of_process, tid);
  if (io < 0) return fail_errno("ioprio_get");
  s.io_priority = static_cast<int>(io);
  return {};
}

/// That of stasis, which every process and thread begins with: they are created before any of them changes its own.
const std::optional<model::Scheduling>& own_scheduling() {
  static const auto known = []() -> std::optional<model::Scheduling> {
    model::Scheduling s;
    if (!read_scheduling(0, s)) return std::nullopt;
    s.timer_slack_ns = static_cast<uint64_t>(prctl(PR_GET_TIMERSLACK));
    return s;
  }();
  return known;
}

plan::Call set_affinity(const std::vector<uint32_t>& cpus) {
  plan::In mask{Bytes(cpus.empty() ? most_cpus / 8 : cpus.back() / 64 * 8 + 8, cpus.empty() ? 0xff : 0)};
  for (const uint32_t cpu : cpus) mask.bytes[cpu / 8] = static_cast<uint8_t>(mask.bytes[cpu / 8] | (1 << (cpu % 8)));
  const uint64_t size = mask.bytes.size();
  // None of them is here (EINVAL): `validate` has said so.
  return expecting(call(SYS_sched_setaffinity, 0, size, std::move(mask)), plan::Expectation::Kind::success_or, -EINVAL);
}

class SchedulingRoom final : public TaskRoom {
 public:
  std::string_view name() const override { return "scheduling"; }

  Status capture(CaptureContext&, const ProcessView& view, model::Task& task) const override {
    return parallel_for(task.threads.size(),
                        [&](size_t i) { return read_scheduling(view.host_tids[i], task.threads[i].scheduling); });
  }

  /// Only the thread itself is told without a reading of /proc of its own.
  Status ask(CaptureContext&, model::Task&, model::Thread& thread, Inquiry& inquiry) const override {
    inquiry.ask(call(SYS_prctl, PR_GET_TIMERSLACK), [&thread](const Inquiry::Answer& answer) -> Status {
      thread.scheduling.timer_slack_ns = static_cast<uint64_t>(answer.result);
      return {};
    });
    return {};
  }

  Status encode(const model::Application&, const model::Task& task, image::TaskRecords& records) const override {
    for (size_t i = 0; i < task.threads.size(); ++i) {
      const auto& s = task.threads[i].scheduling;
      auto& core = *records.cores.at(i).mutable_thread_core();
      core.set_sched_policy(s.policy), core.set_sched_nice(s.nice), core.set_sched_prio(s.priority);
      core.set_timer_slack_ns(s.timer_slack_ns), core.set_io_priority(static_cast<uint32_t>(s.io_priority));
      for (const uint32_t cpu : s.cpus) core.add_cpus(cpu);
      core.set_sched_flags(s.flags);
      if (s.policy == policy_deadline)
        core.set_sched_runtime(s.runtime), core.set_sched_deadline(s.deadline), core.set_sched_period(s.period);
    }
    return {};
  }

  Status decode(const image::TaskRecords& records, model::Application&, model::Task& task) const override {
    for (size_t i = 0; i < task.threads.size(); ++i) {
      const auto& core = records.cores.at(i).thread_core();
      auto& s = task.threads[i].scheduling;
      s.policy = core.sched_policy(), s.nice = core.sched_nice(), s.priority = core.sched_prio();
      if (core.has_timer_slack_ns()) s.timer_slack_ns = core.timer_slack_ns();
      s.io_priority = static_cast<int>(core.io_priority());
      for (const uint32_t cpu : core.cpus()) {
        if (cpu >= most_cpus || (!s.cpus.empty() && cpu <= s.cpus.back())) {
          return fail(Error::invalid("decode scheduling",
                                     fmt::format("CPU {} of the affinity is out of range or order", cpu),
                                     fmt::format("core-{}.img", task.threads[i].tid)));
        }
        s.cpus.push_back(cpu);
      }
      s.flags = core.sched_flags(), s.runtime = core.sched_runtime(), s.deadline = core.sched_deadline(),
      s.period = core.sched_period();
    }
    return {};
  }

  void validate(const model::Application&, const model::Task& task, Diagnostics& diagnostics) const override {
    for (const auto& thread : task.threads) {
      const auto& s = thread.scheduling;
      const auto subject = fmt::format("task {} '{}', thread {}", task.pid, task.name, thread.tid);
      const auto missing = std::ranges::find_if(s.cpus, [](uint32_t cpu) { return cpu >= host().processors; });
      if (missing != s.cpus.end()) {
        diagnostics.warn(subject, fmt::format("its affinity names CPU {}, which this machine does not have", *missing),
                         missing == s.cpus.begin() ? "It may run on any CPU" : "It is left out");
      }
      if (needs_nice(s) && !may_be_nice()) {
        diagnostics.refuse(subject, "its scheduling policy, nice value or I/O priority is above that of ordinary tasks",
                           "Run stasis with CAP_SYS_NICE");
      }
    }
  }

  void contribute(plan::Stage stage, const model::Application&, const model::Task&, const model::Thread& thread,
                  plan::Sink& sink) const override {
    if (stage != plan::Stage::thread) return;
    const auto& s = thread.scheduling;
    if (s == own_scheduling()) {
      sink.perform("scheduling, as stasis has it", "scheduling", {});
      return;
    }
    const Attributes wanted{sizeof(Attributes), s.policy, s.flags, s.nice, s.priority, s.runtime, s.deadline, s.period};
    plan::Calls calls{set_affinity(s.cpus)};
    if (is_real_time(s.policy)) calls.push_back(call(SYS_setpriority, PRIO_PROCESS, 0, s.nice));
    calls.push_back(call(SYS_sched_setattr, 0, plan::struct_in(wanted), 0));
    calls.push_back(call(SYS_ioprio_set, io_priority_of_process, 0, s.io_priority));
    calls.push_back(call(SYS_prctl, PR_SET_TIMERSLACK, s.timer_slack_ns));
    sink.perform("scheduling", "scheduling", std::move(calls),
                 needs_nice(s) ? std::vector<std::string>{"CAP_SYS_NICE"} : std::vector<std::string>{});
  }

 private:
  static bool needs_nice(const model::Scheduling& s) {
    return is_real_time(s.policy) || s.nice < 0 || s.io_priority >> io_priority_class_shift == io_priority_real_time;
  }
  static bool may_be_nice() {
    constexpr uint64_t sys_nice = 23;
    const auto status = kernel::read_status(getpid());
    return !status || ((status->cap_effective >> sys_nice) & 1) != 0;
  }
};

}  // namespace

const TaskRoom& scheduling_room() {
  static const SchedulingRoom room;
  return room;
}

}  // namespace stasis::resource
