#include "model/difference.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace stasis::model {
namespace {

class Comparison {
 public:
  explicit Comparison(const std::set<std::string>& ignored) : ignored_(ignored) {}

  /// Values that fmt can print.
  template <typename T>
  void values(std::string_view part, const std::string& subject, const T& before, const T& after) {
    if (before == after || ignores(part)) return;
    found_.push_back(fmt::format("{}: {}: was {}, is {}", part, subject, before, after));
  }
  /// Values that are only comparable.
  template <typename T>
  void equal(std::string_view part, const std::string& subject, const T& before, const T& after) {
    if (before == after || ignores(part)) return;
    found_.push_back(fmt::format("{}: {}: differs", part, subject));
  }
  void note(std::string_view part, const std::string& text) {
    if (!ignores(part)) found_.push_back(fmt::format("{}: {}", part, text));
  }
  std::vector<std::string> take() { return std::move(found_); }

 private:
  bool ignores(std::string_view part) const {
    // "timers" covers "timers.posix".
    return std::ranges::any_of(ignored_, [&](const std::string& name) {
      return part == name || (part.starts_with(name) && part.size() > name.size() && part[name.size()] == '.');
    });
  }

  const std::set<std::string>& ignored_;
  std::vector<std::string> found_;
};

std::string hex(const std::vector<PendingSignal>& queue) {
  std::string text;
  for (const auto& signal : queue) {
    for (size_t i = 0; i < std::min<size_t>(signal.size(), 32); ++i) text += fmt::format("{:02x}", signal[i]);
    text += ' ';
  }
  return text;
}

void compare_credentials(Comparison& check, const std::string& subject, const Credentials& a, const Credentials& b) {
  const auto ids = [](const Credentials& c) {
    return std::vector<uint32_t>{c.uid, c.euid, c.suid, c.fsuid, c.gid, c.egid, c.sgid, c.fsgid};
  };
  const auto capabilities = [](const Credentials& c) {
    return fmt::format("inh {:x} prm {:x} eff {:x} bnd {:x} amb {:x} securebits {:x} nnp {}", c.inheritable,
                       c.permitted, c.effective, c.bounding, c.ambient, c.securebits, c.no_new_privs);
  };
  check.values("credentials.ids", subject, ids(a), ids(b));
  check.values("credentials.groups", subject, a.groups, b.groups);
  check.values("credentials.capabilities", subject, capabilities(a), capabilities(b));
}

void compare_threads(Comparison& check, const std::string& task, const Thread& a, const Thread& b) {
  const std::string subject = fmt::format("{}, thread {}", task, a.tid);
  check.values("threads", subject, a.tid, b.tid);
  check.values("threads.exit_status", subject, a.exit_status.value_or(-1), b.exit_status.value_or(-1));
  check.values("threads.nested_ids", subject, a.nested_tids, b.nested_tids);
  check.values("threads.childrens_namespace", subject, a.childrens_namespace, b.childrens_namespace);
  check.values("threads.name", subject, a.name, b.name);
  compare_credentials(check, subject, a.credentials, b.credentials);
  check.equal("seccomp", subject, a.seccomp, b.seccomp);
  check.equal("scheduling", subject, a.scheduling, b.scheduling);
  check.values("signals.blocked", subject, a.blocked_signals, b.blocked_signals);
  check.values("signals.pending", subject, hex(a.pending), hex(b.pending));
  check.equal("signals.stack", subject, a.alternate_stack, b.alternate_stack);
  check.values("threads.robust_list", subject, a.robust_list, b.robust_list);
  check.equal("threads.rseq", subject, a.rseq, b.rseq);
  check.values("threads.clear_child_tid", subject, a.clear_child_tid, b.clear_child_tid);
  check.values("threads.parent_death_signal", subject, a.parent_death_signal, b.parent_death_signal);
  check.values("threads.personality", subject, a.personality, b.personality);
}

void compare_timers(Comparison& check, const std::string& subject, const Task& a, const Task& b) {
  for (size_t i = 0; i < a.interval_timers.size(); ++i) {
    check.values("timers.interval", fmt::format("{}, interval timer {}", subject, i), a.interval_timers[i].interval_us,
                 b.interval_timers[i].interval_us);
    check.values("timers.interval", fmt::format("{}, interval timer {} armed", subject, i),
                 a.interval_timers[i].remaining_us != 0, b.interval_timers[i].remaining_us != 0);
  }
  const auto steady = [](std::vector<PosixTimer> timers) {
    for (auto& timer : timers) timer.remaining_ns = timer.remaining_ns != 0, timer.overrun = 0;
    return timers;
  };
  check.equal("timers.posix", subject, steady(a.posix_timers), steady(b.posix_timers));
}

void compare_tasks(Comparison& check, const Task& a, const Task& b) {
  const std::string subject = fmt::format("task {} '{}'", a.pid, a.name);
  check.values("ids.parent", subject, a.parent, b.parent);
  check.values("ids.parent_thread", subject, a.parent_thread, b.parent_thread);
  check.values("ids.group", subject, a.group, b.group);
  check.values("ids.session", subject, a.session, b.session);
  check.values("ids.nested", subject, a.nested_pids, b.nested_pids);
  check.values("ids.pid_namespace", subject, a.pid_namespace, b.pid_namespace);
  check.values("ids.outer_namespace", subject, a.outer_namespace, b.outer_namespace);
  check.values("state", subject, static_cast<int>(a.state), static_cast<int>(b.state));
  check.values("state.exit_status", subject, a.exit_status, b.exit_status);
  check.values("state.stop_signal", subject, a.stop_signal, b.stop_signal);
  check.values("sharing.descriptors", subject, a.descriptors, b.descriptors);
  check.values("sharing.fs", subject, a.fs, b.fs);
  check.values("sharing.handlers", subject, a.handlers, b.handlers);
  check.values("sharing.memory", subject, a.address_space, b.address_space);
  check.values("attributes.subreaper", subject, a.child_subreaper, b.child_subreaper);
  check.values("attributes.oom_score_adj", subject, a.oom_score_adj, b.oom_score_adj);
  check.equal("limits", subject, a.limits, b.limits);
  check.values("signals.pending", subject, hex(a.pending), hex(b.pending));
  compare_timers(check, subject, a, b);
  check.values("threads", subject + ": number", a.threads.size(), b.threads.size());
  for (size_t i = 0; i < std::min(a.threads.size(), b.threads.size()); ++i) {
    compare_threads(check, subject, a.threads[i], b.threads[i]);
  }
}

std::string describe(const Mapping& mapping) {
  return fmt::format(
      "{:x}-{:x} prot {} backing {} file {} segment {} offset {:#x} flags {:#x} advice {} locked {} key {} name '{}'",
      mapping.range.begin, mapping.range.end, mapping.protection, static_cast<int>(mapping.backing), mapping.file,
      mapping.shared_memory, mapping.offset, mapping.map_flags, mapping.advice, mapping.locked, mapping.protection_key,
      mapping.name);
}

void compare_address_spaces(Comparison& check, const AddressSpace& a, const AddressSpace& b) {
  const std::string subject = fmt::format("address space {}", a.id);
  check.equal("memory.layout", subject, a.layout, b.layout);
  check.values("memory.executable", subject, a.executable, b.executable);
  check.values("memory.dumpable", subject, a.dumpable, b.dumpable);
  check.values("memory.thp_disabled", subject, a.thp_disabled, b.thp_disabled);
  check.values("memory.membarrier_registrations", subject, a.membarrier_registrations, b.membarrier_registrations);
  check.values("memory.merge_any", subject, a.merge_any, b.merge_any);
  check.equal("memory.coredump_filter", subject, a.coredump_filter, b.coredump_filter);
  check.values("memory.lock_future", subject, a.lock_future, b.lock_future);
  check.values("memory.lock_future_on_fault", subject, a.lock_future_on_fault, b.lock_future_on_fault);
  std::set<std::string> before, after;
  for (const auto& mapping : a.mappings) before.insert(describe(mapping));
  for (const auto& mapping : b.mappings) after.insert(describe(mapping));
  for (const auto& mapping : before) {
    if (!after.contains(mapping)) check.note("memory.mappings", subject + ": gone: " + mapping);
  }
  for (const auto& mapping : after) {
    if (!before.contains(mapping)) check.note("memory.mappings", subject + ": new: " + mapping);
  }
}

std::string describe(const KindState& state) { return state.value ? state.value->describe() : "nothing"; }

std::vector<std::string> texts(const std::vector<Watch>& watches) {
  std::vector<std::string> texts;
  for (const auto& watch : watches)
    texts.push_back(
        fmt::format("{} as {}: events {:#x}, data {:#x}", watch.target, watch.fd, watch.events, watch.data));
  return texts;
}

std::vector<std::string> texts(const std::vector<FileLock>& locks) {
  std::vector<std::string> texts;
  for (const auto& lock : locks)
    texts.push_back(fmt::format("{}, of open file {} and process {}", describe(lock), lock.description, lock.holder));
  return texts;
}

void compare_tables(Comparison& check, const DescriptorTable& a, const DescriptorTable& b) {
  const std::string subject = fmt::format("table {}", a.id);
  check.equal("files.tables", subject, a.slots, b.slots);
  check.values("files.locks", subject, texts(a.locks), texts(b.locks));
}

void compare_descriptions(Comparison& check, const OpenDescription& a, const OpenDescription& b) {
  const std::string subject = fmt::format("open file {} ({})", a.id, describe(a.state));
  check.values("files.flags", subject, a.flags, b.flags);
  check.values("files.position", subject, a.position, b.position);
  check.equal("files.owner", subject, a.owner, b.owner);
  check.values("files.carries", subject, a.carries, b.carries);
  check.values("files.watches", subject, texts(a.watches), texts(b.watches));
  check.values("files.locks", subject, texts(a.locks), texts(b.locks));
  if (!(a.state == b.state)) {
    check.note("files.state", fmt::format("{}: was {}, is {}", subject, describe(a.state), describe(b.state)));
  }
}

/// Calls `compare` for keys on both sides and notes the others.
template <typename Map, typename Compare>
void compare_maps(Comparison& check, std::string_view part, const Map& before, const Map& after, Compare compare) {
  for (const auto& [id, value] : before) {
    const auto other = after.find(id);
    if (other == after.end())
      check.note(part, fmt::format("{} is gone", id));
    else
      compare(value, other->second);
  }
  for (const auto& [id, value] : after) {
    if (!before.contains(id)) check.note(part, fmt::format("{} is new", id));
  }
}

}  // namespace

std::vector<std::string> differences(const Application& before, const Application& after,
                                     const std::set<std::string>& ignored) {
  Comparison check(ignored);
  for (const auto& task : before.tasks) {
    const Task* other = after.find(task.pid);
    if (other == nullptr) {
      check.note("tasks", fmt::format("{} is gone", task.pid));
      continue;
    }
    compare_tasks(check, task, *other);
    // One of somebody else is another after a restore.
    const auto own = [](const Application& application, uint64_t terminal) {
      return application.terminals.contains(terminal) ? terminal : 0;
    };
    check.values("terminals", fmt::format("task {} '{}'", task.pid, task.name), own(before, task.controlling_terminal),
                 own(after, other->controlling_terminal));
  }
  for (const auto& task : after.tasks) {
    if (before.find(task.pid) == nullptr) check.note("tasks", fmt::format("{} is new", task.pid));
  }
  compare_maps(check, "memory", before.address_spaces, after.address_spaces,
               [&](const auto& a, const auto& b) { compare_address_spaces(check, a, b); });
  compare_maps(check, "files", before.descriptions, after.descriptions,
               [&](const auto& a, const auto& b) { compare_descriptions(check, a, b); });
  compare_maps(check, "files.tables", before.descriptor_tables, after.descriptor_tables,
               [&](const auto& a, const auto& b) { compare_tables(check, a, b); });
  check.equal("ids.nested", "dead leaders", before.dead_leaders, after.dead_leaders);
  check.equal("terminals", "sessions and foregrounds", before.terminals, after.terminals);
  compare_maps(check, "files.fs", before.fs_contexts, after.fs_contexts, [&](const auto& a, const auto& b) {
    check.equal("files.fs", fmt::format("fs context {}", a.id), a, b);
  });
  compare_maps(
      check, "signals.handlers", before.signal_handlers, after.signal_handlers,
      [&](const auto& a, const auto& b) { check.equal("signals.handlers", fmt::format("handlers {}", a.id), a, b); });
  compare_maps(
      check, "memory.shared", before.shared_memories, after.shared_memories,
      [&](const auto& a, const auto& b) { check.equal("memory.shared", fmt::format("segment {}", a.id), a, b); });
  return check.take();
}

}  // namespace stasis::model
