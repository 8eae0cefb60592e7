// Single values that prctl, personality and procfs know: names, personality, dumpable, THP, KSM, subreaper, OOM score,
// death signal.
//
// commit_creds resets both dumpable and the parent death signal when ids change (kernel/cred.c): both are set by every
// thread after its credentials.
#include "resource/process_attributes.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "resource/credentials.h"
#include "resource/host.h"

namespace stasis::resource {
namespace {

using plan::call;
using plan::expecting;
using plan::ResultOf;
using Expected = plan::Expectation::Kind;

constexpr int set_memory_merge = 67, get_memory_merge = 68;  // PR_SET_MEMORY_MERGE, Linux 6.4

/// An answer that is an int behind a pointer.
int int_of(const Inquiry::Answer& answer) {
  int value = 0;
  std::memcpy(&value, answer.out.at(0).data(), sizeof value);
  return value;
}

class ProcessAttributesRoom final : public TaskRoom {
 public:
  std::string_view name() const override { return "attributes"; }

  Status capture(CaptureContext&, const ProcessView& view, model::Task& task) const override {
    const auto* facts = TRY(view.facts());
    task.personality = facts->personality;
    task.oom_score_adj = facts->oom_score_adj;
    return {};
  }

  Status ask(CaptureContext& context, model::Task& task, Inquiry& inquiry) const override {
    inquiry.ask(call(SYS_prctl, PR_GET_CHILD_SUBREAPER, plan::Out{sizeof(int)}),
                [&task](const Inquiry::Answer& answer) -> Status {
                  task.child_subreaper = int_of(answer) != 0;
                  return {};
                });
    auto& space = context.application.address_spaces[task.address_space];
    inquiry.ask(call(SYS_prctl, PR_GET_DUMPABLE), [&space](const Inquiry::Answer& answer) -> Status {
      space.dumpable = static_cast<int>(answer.result);
      return {};
    });
    inquiry.ask(call(SYS_prctl, PR_GET_THP_DISABLE, 0, 0, 0, 0), [&space](const Inquiry::Answer& answer) -> Status {
      space.thp_disabled = answer.result != 0;
      return {};
    });
    inquiry.ask(expecting(call(SYS_prctl, get_memory_merge, 0, 0, 0, 0), Expected::anything),
                [&space](const Inquiry::Answer& answer) -> Status {
                  space.merge_any = answer.result == 1;
                  return {};
                });
    return {};
  }

  Status ask(CaptureContext&, model::Task&, model::Thread& thread, Inquiry& inquiry) const override {
    inquiry.ask(call(SYS_prctl, PR_GET_PDEATHSIG, plan::Out{sizeof(int)}),
                [&thread](const Inquiry::Answer& answer) -> Status {
                  thread.parent_death_signal = int_of(answer);
                  return {};
                });
    return {};
  }

  Status encode(const model::Application& application, const model::Task& task,
                image::TaskRecords& records) const override {
    auto& leader = *records.cores.at(0).mutable_tc();
    leader.set_personality(task.personality);
    leader.set_oom_score_adj(task.oom_score_adj);
    leader.set_child_subreaper(task.child_subreaper);
    leader.set_comm(task.threads.at(0).name);
    for (size_t i = 0; i < task.threads.size(); ++i) {
      auto& core = *records.cores.at(i).mutable_thread_core();
      core.set_comm(task.threads[i].name);
      core.set_pdeath_sig(static_cast<uint32_t>(task.threads[i].parent_death_signal));
    }
    const auto& space = application.address_spaces.at(task.address_space);
    records.mm.set_dumpable(space.dumpable);
    records.mm.set_thp_disabled(space.thp_disabled);
    if (space.merge_any) records.mm.set_merge_any(true);
    return {};
  }

  Status decode(const image::TaskRecords& records, model::Application& application, model::Task& task) const override {
    const auto& leader = records.cores.at(0).tc();
    task.personality = leader.personality();
    task.oom_score_adj = leader.oom_score_adj();
    task.child_subreaper = leader.child_subreaper();
    for (size_t i = 0; i < task.threads.size(); ++i) {
      const auto& core = records.cores.at(i).thread_core();
      auto& thread = task.threads[i];
      thread.name = core.has_comm() ? core.comm() : leader.comm();
      if (thread.name.size() > 15 || thread.name.find('\0') != std::string::npos || core.pdeath_sig() > 64) {
        return fail(Error::invalid("decode attributes", "a name is too long or a death signal does not exist",
                                   fmt::format("core-{}.img", thread.tid)));
      }
      thread.parent_death_signal = static_cast<int>(core.pdeath_sig());
    }
    task.name = task.threads.at(0).name;
    auto& space = application.address_spaces[task.address_space];
    space.id = task.address_space;
    if (records.mm.has_dumpable()) space.dumpable = records.mm.dumpable();
    space.thp_disabled = records.mm.thp_disabled();
    space.merge_any = records.mm.merge_any();
    return {};
  }

  void validate(const model::Application&, const model::Task& task, Diagnostics& diagnostics) const override {
    const int32_t ours = host().oom_score_adj;
    if (task.state == model::TaskState::zombie || task.oom_score_adj >= ours || host().can_raise_limits) return;
    diagnostics.refuse(fmt::format("task {} '{}'", task.pid, task.name),
                       fmt::format("its oom_score_adj of {} is below ours, {}", task.oom_score_adj, ours),
                       "run stasis with CAP_SYS_RESOURCE");
  }

  void contribute(plan::Stage stage, const model::Application& application, const model::Task& task,
                  plan::Sink& sink) const override {
    if (stage != plan::Stage::process) return;
    plan::Calls calls{call(SYS_personality, task.personality)};
    const auto& space = application.address_spaces.at(task.address_space);
    if (space.thp_disabled) calls.push_back(call(SYS_prctl, PR_SET_THP_DISABLE, 1, 0, 0, 0));
    if (space.merge_any) calls.push_back(call(SYS_prctl, set_memory_merge, 1, 0, 0, 0));
    sink.perform("personality and memory policy", "attributes", std::move(calls));
    const auto score = fmt::format("{}", task.oom_score_adj);
    sink.perform("OOM score", "attributes.oom_score_adj",
                 {call(SYS_openat, AT_FDCWD, plan::text("/proc/self/oom_score_adj"), O_WRONLY | O_CLOEXEC, 0),
                  call(SYS_write, ResultOf{-1}, plan::text(score), score.size()), call(SYS_close, ResultOf{-2})});
  }

  void contribute(plan::Stage stage, const model::Application& application, const model::Task& task,
                  const model::Thread& thread, plan::Sink& sink) const override {
    if (stage == plan::Stage::thread) {
      sink.perform("name", "threads.name", {call(SYS_prctl, PR_SET_NAME, plan::text(thread.name))});
    }
    if (stage == plan::Stage::final && thread.tid == leader_of(task.pid) && task.child_subreaper)
      sink.add(plan::SetChildReaper{true});
    if (stage != plan::Stage::privileges) return;
    plan::Calls calls;
    // A thread that keeps stasis' credentials resets neither, and is born without a death signal (kernel/fork.c).
    const bool untouched = thread.tid != leader_of(task.pid) && has_inherited_credentials(thread);
    if (untouched && thread.parent_death_signal == 0) return;
    const int dumpable = application.address_spaces.at(task.address_space).dumpable;
    // 2 (readable by root only) cannot be set by prctl: the kernel gives it to tasks that change ids where
    // fs.suid_dumpable says so.
    if (dumpable == 0 || dumpable == 1) calls.push_back(call(SYS_prctl, PR_SET_DUMPABLE, dumpable));
    calls.push_back(call(SYS_prctl, PR_SET_PDEATHSIG, thread.parent_death_signal));
    sink.perform("dumpable and death signal", "attributes.dumpable", std::move(calls));
  }
};

}  // namespace

const TaskRoom& process_attributes_room() {
  static const ProcessAttributesRoom room;
  return room;
}

}  // namespace stasis::resource
