// Single values that prctl, personality and procfs know: names, personality, dumpable, THP, KSM, subreaper, OOM score,
// what goes into core dumps, death signal.
//
// commit_creds resets both dumpable and the parent death signal when ids change (kernel/cred.c): both are set by every
// thread after its credentials. Dumpable belongs to the address space: the last thread's word, like everybody's, is the
// saved value. The value 2 cannot be set by prctl: it comes to tasks that change ids where fs.suid_dumpable is 2.
//
// oom_score_adj can be lowered no further than what the last task with CAP_SYS_RESOURCE among the ancestors set
// (fs/proc/base.c, __set_oom_adj); that limit cannot be read, only tried.
//
// Under READ_IMPLIES_EXEC whatever a thread maps or protects can be executed, too: its personality comes when its
// process has all its mappings. What core dumps contain is inherited by birth (kernel/fork.c, MMF_INIT_MASK): when it
// is set, all have been born.
#include "resource/process_attributes.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <charconv>
#include <cstring>

#include "resource/credentials.h"
#include "resource/host.h"

namespace stasis::resource {
namespace {

using plan::call;
using plan::expecting;
using plan::ResultOf;
using Expected = plan::Expectation::Kind;

constexpr int get_registrations = 1 << 9;  // MEMBARRIER_CMD_GET_REGISTRATIONS, Linux 6.3
constexpr int get_memory_merge = 68;       // PR_GET_MEMORY_MERGE, Linux 6.4
constexpr int dumpable_by_root = 2;        // SUID_DUMP_ROOT
constexpr int lowest_score = -1000, highest_score = 1000;
constexpr uint32_t all_parts_of_dumps = 0x1ff;  // core(5)
constexpr const char *own_score = "/proc/self/oom_score_adj", *own_filter = "/proc/self/coredump_filter";

template <typename T>
T number_in(std::string_view text, int base = 10) {
  T value{};
  std::from_chars(text.data(), text.data() + text.size(), value, base);
  return value;
}

plan::Calls write_own(const char* file, const std::string& value) {
  return {call(SYS_openat, AT_FDCWD, plan::text(file), O_WRONLY | O_CLOEXEC, 0),
          call(SYS_write, ResultOf{-1}, plan::text(value), value.size()), call(SYS_close, ResultOf{-2})};
}

/// An answer that is an int behind a pointer.
int int_of(const Inquiry::Answer& answer) {
  int value = 0;
  std::memcpy(&value, answer.out.at(0).data(), sizeof value);
  return value;
}

class ProcessAttributesRoom final : public TaskRoom {
 public:
  std::string_view name() const override { return "attributes"; }

  Status capture(CaptureContext& context, const ProcessView& view, model::Task& task) const override {
    const auto* facts = TRY(view.facts());
    task.oom_score_adj = facts->oom_score_adj;
    context.application.address_spaces[task.address_space].coredump_filter = facts->coredump_filter;
    if (view.leader_ended) {  // it cannot be asked
      const auto text = TRY(kernel::read_proc(view.host_pid, "personality"));
      task.threads.at(0).personality = number_in<uint32_t>(text, 16);
    }
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
    inquiry.ask(expecting(call(SYS_membarrier, get_registrations, 0, 0), Expected::anything),
                [&space](const Inquiry::Answer& answer) -> Status {  // Linux 6.3
                  if (answer.result > 0) space.membarrier_registrations = static_cast<uint32_t>(answer.result);
                  return {};
                });
    return {};
  }

  Status ask(CaptureContext&, model::Task&, model::Thread& thread, Inquiry& inquiry) const override {
    inquiry.ask(call(SYS_prctl, PR_GET_PDEATHSIG, plan::Out{sizeof(int)}),
                [&](const Inquiry::Answer& answer) -> Status {
                  thread.parent_death_signal = int_of(answer);
                  return {};
                });
    inquiry.ask(call(SYS_personality, ask_personality), [&thread](const Inquiry::Answer& answer) -> Status {
      thread.personality = static_cast<uint32_t>(answer.result);
      return {};
    });
    return {};
  }

  Status encode(const model::Application& application, const model::Task& task,
                image::TaskRecords& records) const override {
    auto& leader = *records.cores.at(0).mutable_tc();
    const uint32_t leaders = task.threads.at(0).personality;
    leader.set_personality(leaders);
    leader.set_oom_score_adj(task.oom_score_adj);
    leader.set_child_subreaper(task.child_subreaper);
    leader.set_comm(task.threads.at(0).name);
    for (size_t i = 0; i < task.threads.size(); ++i) {
      auto& core = *records.cores.at(i).mutable_thread_core();
      core.set_comm(task.threads[i].name);
      core.set_pdeath_sig(static_cast<uint32_t>(task.threads[i].parent_death_signal));
      if (task.threads[i].personality != leaders) core.set_personality(task.threads[i].personality);
    }
    const auto& space = application.address_spaces.at(task.address_space);
    records.mm.set_dumpable(space.dumpable);
    records.mm.set_thp_disabled(space.thp_disabled);
    if (space.merge_any) records.mm.set_merge_any(true);
    if (space.coredump_filter) records.mm.set_coredump_filter(*space.coredump_filter);
    if (space.membarrier_registrations != 0) leader.set_membarrier_registration_mask(space.membarrier_registrations);
    return {};
  }

  Status decode(const image::TaskRecords& records, model::Application& application, model::Task& task) const override {
    const auto& leader = records.cores.at(0).tc();
    task.oom_score_adj = leader.oom_score_adj();
    if (task.oom_score_adj < lowest_score || task.oom_score_adj > highest_score) {
      return fail(Error::invalid("decode attributes",
                                 fmt::format("an OOM score of {} does not exist", task.oom_score_adj),
                                 fmt::format("core-{}.img, field tc.oom_score_adj", task.pid)));
    }
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
      thread.personality = core.has_personality() ? core.personality() : leader.personality();
    }
    task.name = task.threads.at(0).name;
    auto& space = application.address_spaces[task.address_space];
    space.id = task.address_space;
    if (records.mm.has_dumpable()) space.dumpable = records.mm.dumpable();
    if (space.dumpable < 0 || space.dumpable > dumpable_by_root) {
      return fail(Error::invalid("decode attributes", fmt::format("there is no dumpable state {}", space.dumpable),
                                 fmt::format("mm-{}.img, field dumpable", task.pid)));
    }
    if (records.mm.has_coredump_filter()) space.coredump_filter = records.mm.coredump_filter();
    if (space.coredump_filter.value_or(0) > all_parts_of_dumps) {
      return fail(Error::invalid("decode attributes",
                                 fmt::format("a core dump has no parts {:#x}", *space.coredump_filter),
                                 fmt::format("mm-{}.img, field coredump_filter", task.pid)));
    }
    space.thp_disabled = records.mm.thp_disabled();
    space.membarrier_registrations = leader.membarrier_registration_mask();
    space.merge_any = records.mm.merge_any();
    return {};
  }

  void validate(const model::Application& application, const model::Task& task,
                Diagnostics& diagnostics) const override {
    if (task.state == model::TaskState::zombie) return;
    const auto subject = fmt::format("task {} '{}'", task.pid, task.name);
    if (!can_have_score(task.oom_score_adj)) {
      diagnostics.refuse(subject,
                         fmt::format("its oom_score_adj of {} is below what stasis may set", task.oom_score_adj),
                         "Run stasis with CAP_SYS_RESOURCE");
    }
    const auto& space = application.address_spaces.at(task.address_space);
    if (space.dumpable == dumpable_by_root && suid_dumpable() != dumpable_by_root) {
      diagnostics.warn(subject,
                       "its memory was dumpable by root only, which cannot be had where fs.suid_dumpable is not 2",
                       "It is restored as not dumpable at all");
    }
  }

  void contribute(plan::Stage stage, const model::Application& application, const model::Task& task,
                  plan::Sink& sink) const override {
    if (stage != plan::Stage::process) return;
    const auto& space = application.address_spaces.at(task.address_space);
    plan::Calls calls;
    if (space.thp_disabled != host().thp_disabled)
      calls.push_back(call(SYS_prctl, PR_SET_THP_DISABLE, space.thp_disabled, 0, 0, 0));
    for (uint32_t rest = space.membarrier_registrations; rest != 0; rest &= rest - 1)
      calls.push_back(call(SYS_membarrier, rest & -rest, 0, 0));
    if (space.dumpable == dumpable_by_root && suid_dumpable() == dumpable_by_root) {
      // Ids change there and back: the kernel sets dumpable to fs.suid_dumpable.
      calls.push_back(expecting(call(SYS_setfsgid, nobody), Expected::anything));
      calls.push_back(expecting(call(SYS_setfsgid, getegid()), Expected::anything));
    }
    sink.perform("memory policy", "attributes", std::move(calls));
    const auto unless = [](bool born_with_it, const char* file, const std::string& value) {
      return born_with_it ? plan::Calls{} : write_own(file, value);
    };
    sink.perform("OOM score", "attributes.oom_score_adj",
                 unless(task.oom_score_adj == host().oom_score_adj, own_score, fmt::format("{}", task.oom_score_adj)));
    if (!space.coredump_filter) return;
    sink.perform("what goes into core dumps", "attributes.coredump_filter",
                 unless(*space.coredump_filter == host().coredump_filter, own_filter,
                        fmt::format("{:#x}", *space.coredump_filter)));
  }

  void contribute(plan::Stage stage, const model::Application& application, const model::Task& task,
                  const model::Thread& thread, plan::Sink& sink) const override {
    if (stage == plan::Stage::thread) {
      plan::Calls calls{call(SYS_prctl, PR_SET_NAME, plan::text(thread.name))};
      if (thread.personality != host().personality) calls.push_back(call(SYS_personality, thread.personality));
      sink.perform("name and personality", "threads.attributes", std::move(calls));
    }
    if (stage == plan::Stage::final && thread.tid == leader_of(task.pid) && task.child_subreaper)
      sink.add(plan::SetChildReaper{true});
    if (stage != plan::Stage::privileges) return;
    plan::Calls calls;
    // A thread that keeps stasis' credentials resets neither, and is born without a death signal (kernel/fork.c).
    const bool untouched = thread.tid != leader_of(task.pid) && has_inherited_credentials(thread);
    if (untouched && thread.parent_death_signal == 0) return;
    const int dumpable = application.address_spaces.at(task.address_space).dumpable;
    if (dumpable != dumpable_by_root) {
      calls.push_back(call(SYS_prctl, PR_SET_DUMPABLE, dumpable));
    } else if (suid_dumpable() != dumpable_by_root) {
      calls.push_back(call(SYS_prctl, PR_SET_DUMPABLE, 0));  // the stricter of the two that can be had
    }
    calls.push_back(call(SYS_prctl, PR_SET_PDEATHSIG, thread.parent_death_signal));
    sink.perform("dumpable and death signal", "attributes.dumpable", std::move(calls));
  }

 private:
  static constexpr gid_t nobody = 65534;

  static int suid_dumpable() {
    static const int known = [] {
      const auto text = kernel::read_file("/proc/sys/fs/suid_dumpable");
      return text ? number_in<int>(*text) : 0;
    }();
    return known;
  }

  /// Tried on ourselves and taken back: raising is always allowed.
  static bool can_have_score(int32_t wanted) {
    if (wanted >= host().oom_score_adj || host().can_raise_limits) return true;
    const auto ours = kernel::read_file(own_score);
    if (!ours) return true;
    const UniqueFd file(open(own_score, O_WRONLY | O_CLOEXEC));
    const auto text = fmt::format("{}", wanted);
    if (write(file.get(), text.data(), text.size()) < 0) return false;
    return write(file.get(), ours->data(), ours->size()) >= 0;
  }
};

}  // namespace

const TaskRoom& process_attributes_room() {
  static const ProcessAttributesRoom room;
  return room;
}

}  // namespace stasis::resource
