#include "plan/verify_attributes.h"

#include <fmt/format.h>
#include <linux/capability.h>
#include <signal.h>

#include <sys/mman.h>

#include <algorithm>
#include <iterator>

#include "plan/contributor.h"
#include "plan/memory.h"

namespace stasis::plan {
namespace {

using model::Task;
using model::Thread;

/// Whose an attribute is: it is established once for each of these.
enum class Scope : uint8_t { thread, process, space, fs };

struct Rule {
  std::string_view name;
  Scope scope;
  /// Whether the Application has something that differs from how a new task is born.
  bool (*demanded)(const model::Application&, const Task&, const Thread&);
  bool repeatable = false;        ///< several commands, one for each part
  bool optional = false;          ///< may be established where it is not demanded
  bool one_acts_for_all = false;  ///< one thread may do it for its whole process
};

bool always(const model::Application&, const Task&, const Thread&) { return true; }

const model::AddressSpace& space_of(const model::Application& application, const Task& task) {
  return application.address_spaces.at(task.address_space);
}
bool is_leader(const Task& task, const Thread& thread) { return thread.tid == leader_of(task.pid); }

bool has_handlers(const model::Application& application, const Task& task, const Thread&) {
  const auto& actions = application.signal_handlers.at(task.handlers).actions;
  for (int signal = 1; signal <= static_cast<int>(actions.size()); ++signal) {
    const bool settable = signal != SIGKILL && signal != SIGSTOP;
    if (settable && actions[static_cast<size_t>(signal - 1)] != model::SignalAction{}) return true;
  }
  return false;
}
bool has_pending(const model::Application&, const Task& task, const Thread& thread) {
  return !thread.pending.empty() || (is_leader(task, thread) && !task.pending.empty());
}
bool has_interval_timers(const model::Application&, const Task& task, const Thread&) {
  return std::ranges::any_of(task.interval_timers, [](const auto& timer) { return timer != model::IntervalTimer{}; });
}
bool starts_overrun_timers(const model::Application&, const Task& task, const Thread& thread) {
  return std::ranges::any_of(task.posix_timers,
                             [&](const auto& timer) { return model::overruns_belong_to(task, timer) == thread.tid; });
}
bool arms_timers(const model::Application&, const Task& task, const Thread&) {
  return std::ranges::any_of(task.posix_timers, [&](const auto& timer) {
    return (timer.remaining_ns != 0 || timer.interval_ns != 0) && model::overruns_belong_to(task, timer).value == 0;
  });
}
bool any_mapping(const model::Application& application, const Task& task, bool (*has)(const model::Mapping&)) {
  return std::ranges::any_of(space_of(application, task).mappings, has);
}
/// Beside what may come with the mapping itself (SpaceModel::keeps_huge_pages_out).
bool has_memory_state(const model::Application& application, const Task& task, const Thread&) {
  const auto& space = space_of(application, task);
  return std::ranges::any_of(space.mappings, [&](const model::Mapping& m) {
    const size_t at_birth = m.backing == model::Backing::private_anonymous ? m.advice.count(MADV_NOHUGEPAGE) : 0;
    return !m.guards.empty() || m.advice.size() > at_birth || !m.name.empty() || m.locked || is_kept_unmerged(space, m);
  });
}

constexpr Rule rules[] = {
    {"scheduling", Scope::thread, always},
    {"threads.attributes", Scope::thread, always},
    {"threads.pointers", Scope::thread, always},
    {"threads.rseq", Scope::thread, [](const auto&, const Task&, const Thread& t) { return t.rseq.address != 0; }},
    {"signals.stack", Scope::thread,
     [](const auto&, const Task&, const Thread& t) { return t.alternate_stack != model::AlternateStack{}; }},
    {"signals.pending", Scope::thread, has_pending},
    {"signals.ended_mask", Scope::thread, [](const auto&, const Task&, const Thread& t) { return t.has_ended(); }},
    {"signals.handlers", Scope::process, has_handlers},
    {"timers.armed", Scope::process, arms_timers},
    {"timers.overruns", Scope::thread, starts_overrun_timers},
    {"timers.posix", Scope::process, [](const auto&, const Task& t, const Thread&) { return !t.posix_timers.empty(); }},
    {"timers.interval", Scope::process, has_interval_timers},
    {"limits", Scope::process, always},
    {"attributes", Scope::process, always},
    {"attributes.oom_score_adj", Scope::process, always},
    {"attributes.coredump_filter", Scope::process,
     [](const auto& application, const Task& t, const Thread&) {
       return space_of(application, t).coredump_filter.has_value();
     }},
    // A thread that keeps its creator's credentials is born without a death signal.
    {.name = "attributes.dumpable",
     .scope = Scope::thread,
     .demanded = [](const auto&, const Task& task,
                    const Thread& t) { return is_leader(task, t) || t.parent_death_signal != 0; },
     .optional = true},
    {"fs.directory", Scope::fs, always},
    {"fs.root", Scope::fs, always},
    {"memory.layout", Scope::space, always},
    {"memory.merging", Scope::space,
     [](const auto& application, const Task& t, const Thread&) { return space_of(application, t).merge_any; }},
    {.name = "memory.state", .scope = Scope::space, .demanded = has_memory_state, .repeatable = true},
    {.name = "memory.aio",
     .scope = Scope::space,
     .demanded = [](const auto& application, const Task& t,
                    const Thread&) { return !space_of(application, t).aio.empty(); },
     .repeatable = true},
    {.name = "memory.io_uring",
     .scope = Scope::space,
     .demanded =
         [](const auto& application, const Task& t, const Thread&) {
           return any_mapping(application, t,
                              [](const model::Mapping& m) { return m.backing == model::Backing::io_uring; });
         },
     .repeatable = true},
    {"memory.keys", Scope::space,
     [](const auto& application, const Task& t, const Thread&) {
       return any_mapping(application, t, [](const model::Mapping& m) { return m.protection_key > 0; });
     }},
    {"memory.lock_future", Scope::space,
     [](const auto& application, const Task& t, const Thread&) { return space_of(application, t).lock_future; }},
    {"memory.seals", Scope::space,
     [](const auto& application, const Task& t, const Thread&) {
       return any_mapping(application, t, [](const model::Mapping& m) { return m.sealed; });
     }},
    {"credentials", Scope::thread, always},
    {"credentials.capabilities", Scope::thread, always},
    {.name = "seccomp",
     .scope = Scope::thread,
     .demanded = [](const auto&, const Task&,
                    const Thread& t) { return t.seccomp.mode != model::Seccomp::Mode::disabled; },
     .one_acts_for_all = true},
};
static_assert(std::size(rules) <= AttributeLedger::most_attributes);

constexpr size_t index_of(std::string_view name) {
  size_t index = 0;
  while (index < std::size(rules) && rules[index].name != name) ++index;
  return index;
}
constexpr size_t seccomp = index_of("seccomp"), final_capabilities = index_of("credentials.capabilities"),
                 memory_state = index_of("memory.state"), merging = index_of("memory.merging");
/// A change of ids resets the other two (kernel/cred.c, commit_creds).
constexpr size_t credentials = index_of("credentials"), dumpable = index_of("attributes.dumpable");

/// capabilities(7): the names in use in PERFORM, and their numbers.
struct Capability {
  std::string_view name;
  int number;
};
constexpr Capability capabilities[] = {
    {"CAP_CHECKPOINT_RESTORE", CAP_CHECKPOINT_RESTORE},
    {"CAP_NET_ADMIN", CAP_NET_ADMIN},
    {"CAP_NET_RAW", CAP_NET_RAW},
    {"CAP_SETGID", CAP_SETGID},
    {"CAP_SETPCAP", CAP_SETPCAP},
    {"CAP_SETUID", CAP_SETUID},
    {"CAP_SYS_ADMIN", CAP_SYS_ADMIN},
    {"CAP_SYS_CHROOT", CAP_SYS_CHROOT},
    {"CAP_SYS_NICE", CAP_SYS_NICE},
    {"CAP_SYS_TIME", CAP_SYS_TIME},
    {"CAP_WAKE_ALARM", CAP_WAKE_ALARM},
};

}  // namespace

AttributeLedger::AttributeLedger(const model::Application& wanted) : wanted_(wanted) {
  for (const auto& task : wanted.tasks) {
    if (task.state == model::TaskState::zombie) continue;
    for (const auto& thread : task.threads) {
      threads_[thread.tid.value] = {&task, &thread};
      by_thread_[thread.tid.value] = {};
    }
    by_process_[task.pid.value] = {};
    by_space_[task.address_space] = {};
    by_fs_[task.fs] = {};
  }
}

std::optional<std::string> AttributeLedger::record(Pid pid, Tid tid, const Perform& perform) {
  if (auto lost = check_rights(tid, perform.needs, perform.attribute == rules[final_capabilities].name)) return lost;
  if (perform.attribute.empty()) return {};
  if (perform.attribute == only_on_success || perform.attribute == only_on_failure) {
    if (pid.value == 0) return {};
    return fmt::format("'{}' is for commands of the supervisor", perform.attribute);
  }
  const size_t rule = index_of(perform.attribute);
  if (rule == std::size(rules)) return fmt::format("nothing of a task is called '{}'", perform.attribute);
  const auto who = threads_.find(tid.value);
  if (who == threads_.end() || who->second.task->pid != pid)
    return fmt::format("'{}' is established in a task that is not part of the application", perform.attribute);
  if (rule == credentials && by_thread_.at(tid.value)[dumpable] > 0)
    return "it resets the thread's dumpable flag and death signal, which have been set already";
  if (rule == merging && by_space_.at(who->second.task->address_space)[memory_state] > 0)
    return "it makes mergeable what has been kept from it already (MADV_UNMERGEABLE)";
  auto& count = counts_of(who->second, rule)[rule];
  if (count > 0 && !rules[rule].repeatable) return fmt::format("'{}' is established already", perform.attribute);
  count = 1;
  return {};
}

/// Filters and the final capabilities end what a thread may do.
std::optional<std::string> AttributeLedger::check_rights(Tid tid, std::span<const std::string> needs,
                                                         bool unfiltered) const {
  const auto counts = by_thread_.find(tid.value);
  const bool known_thread = counts != by_thread_.end();
  if (known_thread && counts->second[seccomp] > 0 && !unfiltered)
    return "it comes after the thread's seccomp filters, which may forbid it (EPERM)";
  const bool reduced = known_thread && counts->second[final_capabilities] > 0;
  const uint64_t held = reduced ? threads_.at(tid.value).thread->credentials.effective : ~uint64_t{0};
  for (const auto& need : needs) {
    const auto* known = std::ranges::find(capabilities, need, &Capability::name);
    if (known == std::end(capabilities)) return fmt::format("no capability is called '{}'", need);
    if ((held >> known->number & 1) == 0)
      return fmt::format("it needs {}, which the thread has given up by then (EPERM)", need);
  }
  return {};
}

AttributeLedger::Counts& AttributeLedger::counts_of(const Known& who, size_t rule) {
  switch (rules[rule].scope) {
    case Scope::process:
      return by_process_.at(who.task->pid.value);
    case Scope::space:
      return by_space_.at(who.task->address_space);
    case Scope::fs:
      return by_fs_.at(who.task->fs);
    case Scope::thread:
      break;
  }
  return by_thread_.at(who.thread->tid.value);
}

std::optional<std::string> AttributeLedger::compare(const model::Task& task, bool keeps_huge_pages_out) {
  for (size_t rule = 0; rule < std::size(rules); ++rule) {
    const auto count = [&](const Thread& thread) { return counts_of({&task, &thread}, rule)[rule]; };
    const bool done_for_all = rules[rule].one_acts_for_all && std::ranges::any_of(task.threads, count);
    for (const auto& thread : task.threads) {
      const bool demanded =
          rules[rule].demanded(wanted_, task, thread) || (rule == memory_state && !keeps_huge_pages_out);
      if (demanded && count(thread) == 0 && !done_for_all)
        return fmt::format("nothing establishes '{}' in thread {}", rules[rule].name, thread.tid);
      if (!demanded && count(thread) != 0 && !rules[rule].optional)
        return fmt::format("thread {} has no '{}' to establish", thread.tid, rules[rule].name);
      if (rules[rule].scope != Scope::thread) break;  // the same for all threads
    }
  }
  return {};
}

}  // namespace stasis::plan
