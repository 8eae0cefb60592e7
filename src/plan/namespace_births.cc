#include "plan/namespace_births.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <algorithm>
#include <ranges>

namespace stasis::plan {

NamespaceBirths::NamespaceBirths(const model::Application& application, const model::PidNamespaces& spaces)
    : application_(application), tasks_(application), spaces_(spaces) {
  if (!spaces_.any()) return;
  root_session_ = tasks_.find(application.root)->session;
  for (const auto& task : application.tasks) {
    if (task.pid != application.root && spaces_.of(task.parent) != spaces_.born_in(task.pid))
      object(fmt::format("{} has come into the pid namespace of {} by setns: its parent {} is outside", task.pid,
                         task.pid_namespace, task.parent));
    if (spaces_.is_init(task.pid) && WIFSIGNALED(task.exit_status))
      object(fmt::format("{} was ended by signal {}: the init of a pid namespace does not end by one of its own",
                         task.pid, WTERMSIG(task.exit_status)));
  }
  find_sessions();
  find_groups();
}

bool NamespaceBirths::allows(Pid space, Pid session) const {
  if (!spaces_.any() || spaces_.of(session) == space) return true;
  const auto outer = outer_session_.find(space);
  return outer != outer_session_.end() && outer->second == session;
}

bool NamespaceBirths::allows_birth(Pid leader, Pid session) const {
  if (!spaces_.any()) return true;
  const auto outer = outer_session_.find(leader);
  if (outer != outer_session_.end() && outer->second != session) return false;
  return allows(spaces_.born_in(leader), session);
}

/// From the inner namespaces outwards: what an inner one has from outside, its init has from the namespace above.
void NamespaceBirths::find_sessions() {
  std::map<Pid, std::set<Pid>> outer;
  const auto enter = [&](Pid space, Pid session) {
    if (space.value != 0 && spaces_.of(session) != space) outer[space].insert(session);
  };
  for (const auto& task : application_.tasks) {
    if (task.session == task.pid) continue;
    enter(spaces_.born_in(task.pid), task.session);
    if (spaces_.is_init(task.pid)) enter(task.pid, task.session);
  }
  for (const Pid init : std::views::reverse(spaces_.inits())) {
    const auto& sessions = outer[init];
    if (sessions.size() > 1) {
      object(fmt::format("processes in the pid namespace of {} are in two sessions from outside, {} and {}", init,
                         *sessions.begin(), *std::next(sessions.begin())));
    }
    if (sessions.empty()) continue;
    outer_session_[init] = *sessions.begin();
    enter(spaces_.above(init), *sessions.begin());
  }
}

void NamespaceBirths::find_groups() {
  std::map<Pid, std::set<Pid>> outer;
  std::set<Pid> led;  // by others than themselves
  for (const auto& task : application_.tasks) {
    if (task.group != task.pid) led.insert(task.group);
    for (Pid space = task.pid_namespace; space.value != 0 && !spaces_.contains(space, spaces_.of(task.group));
         space = spaces_.above(space))
      outer[space].insert(task.group);
  }
  const auto& root = *tasks_.find(application_.root);
  for (const auto& [init, groups] : outer) {
    if (groups.size() > 1) {
      object(fmt::format("processes in the pid namespace of {} are in two groups from outside, {} and {}", init,
                         *groups.begin(), *std::next(groups.begin())));
    }
    const Pid group = *groups.begin(), above = spaces_.above(init);
    const auto session = outer_session_.find(init);
    const bool of_session = session != outer_session_.end() && session->second == group;
    const bool of_root = root.session != root.pid && group == root.group && tasks_.find(group) == nullptr;
    // Whoever lives above has it from outside, too.
    if (of_session || of_root || !spaces_.contains(above, spaces_.of(group))) continue;
    // For a moment the leader is in it, alone with somebody who stays, and then goes back to the group of the session.
    const bool leader_returns = session != outer_session_.end() && spaces_.of(session->second) == above &&
                                (session->second != root_session_ || root.session == root.pid);
    if (spaces_.of(group) != above || (tasks_.find(group) != nullptr && !leader_returns))
      object(fmt::format("{} begins its pid namespace in group {}, whose leader cannot be in it at that time", init,
                         group));
    birth_groups_[init] = group;
  }
  for (const auto& task : application_.tasks) {
    if (!led.contains(task.pid) || spaces_.contains(task.pid_namespace, spaces_.of(task.group))) continue;
    object(
        fmt::format("{} leads a group, and is in group {}, which it cannot join: its leader is outside of its pid "
                    "namespace",
                    task.pid, task.group));
  }
}

model::Application without_pid_namespaces(const model::Application& application, const model::PidNamespaces& spaces) {
  model::Application flat;
  flat.root = application.root;
  flat.root_is_namespace_init = application.root_is_namespace_init;
  flat.shell_job = application.shell_job;
  flat.tasks = application.tasks;
  for (auto& task : flat.tasks) {
    if (spaces.is_init(task.parent)) task.parent = application.root;
    task.nested_pids.clear();
    task.pid_namespace = {};
    for (auto& thread : task.threads) thread.nested_tids.clear();
  }
  return flat;
}

}  // namespace stasis::plan
