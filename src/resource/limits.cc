// Resource limits of a process. Read from /proc/PID/limits and set by the task itself: prlimit on a task with other ids
// needs CAP_SYS_RESOURCE, which even root may lack. A hard limit can be lowered but not raised without it.
#include "resource/limits.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernel/proc.h"
#include "resource/host.h"

namespace stasis::resource {
namespace {

using plan::call;

constexpr size_t limit_count = 16;
constexpr const char* limit_names[limit_count] = {"CPU",      "FSIZE",  "DATA",    "STACK", "CORE",  "RSS",
                                                  "NPROC",    "NOFILE", "MEMLOCK", "AS",    "LOCKS", "SIGPENDING",
                                                  "MSGQUEUE", "NICE",   "RTPRIO",  "RTTIME"};

class LimitsRoom final : public TaskRoom {
 public:
  std::string_view name() const override { return "limits"; }

  Status capture(CaptureContext&, const ProcessView& view, model::Task& task) const override {
    const auto& limits = TRY(view.facts())->limits;
    for (size_t i = 0; i < limit_count && i < limits.size(); ++i) task.limits[i] = {limits[i].soft, limits[i].hard};
    return {};
  }

  Status encode(const model::Application&, const model::Task& task, image::TaskRecords& records) const override {
    auto& out = *records.cores.at(0).mutable_tc()->mutable_rlimits();
    for (const auto& limit : task.limits) {
      auto& entry = *out.add_rlimits();
      entry.set_cur(limit.soft), entry.set_max(limit.hard);
    }
    return {};
  }

  Status decode(const image::TaskRecords& records, model::Application&, model::Task& task) const override {
    const auto& in = records.cores.at(0).tc().rlimits();
    if (in.rlimits_size() != static_cast<int>(limit_count)) {
      return fail(Error::invalid("decode limits",
                                 fmt::format("{} limits instead of {}", in.rlimits_size(), limit_count),
                                 fmt::format("core-{}.img", task.pid)));
    }
    for (size_t i = 0; i < limit_count; ++i) {
      const auto& entry = in.rlimits(static_cast<int>(i));
      if (entry.cur() > entry.max()) {
        return fail(Error::invalid("decode limits", fmt::format("RLIMIT_{} exceeds its hard limit", limit_names[i]),
                                   fmt::format("core-{}.img", task.pid)));
      }
      task.limits[i] = {entry.cur(), entry.max()};
    }
    return {};
  }

  void validate(const model::Application&, const model::Task& task, Diagnostics& diagnostics) const override {
    for (size_t i = 0; i < limit_count; ++i) {
      const uint64_t ours = host().limits[i].hard;
      if (task.limits[i].hard <= ours || task.state == model::TaskState::zombie || host().can_raise_limits) continue;
      diagnostics.refuse(
          fmt::format("task {} '{}'", task.pid, task.name),
          fmt::format("its hard RLIMIT_{} of {} is above ours, {}", limit_names[i], task.limits[i].hard, ours),
          "run stasis with CAP_SYS_RESOURCE or from a process with a higher limit");
    }
  }

  void contribute(plan::Stage stage, const model::Application&, const model::Task& task, const model::Thread& thread,
                  plan::Sink& sink) const override {
    if (stage != plan::Stage::final || thread.tid != leader_of(task.pid)) return;
    plan::Calls calls;
    for (size_t i = 0; i < limit_count; ++i) {
      if (task.limits[i] == host().limits[i]) continue;  // born with it
      const rlimit wanted{task.limits[i].soft, task.limits[i].hard};
      calls.push_back(call(SYS_prlimit64, 0, i, plan::struct_in(wanted), 0));
    }
    sink.perform("resource limits", "limits", std::move(calls));
  }
};

}  // namespace

const TaskRoom& limits_room() {
  static const LimitsRoom room;
  return room;
}

}  // namespace stasis::resource
