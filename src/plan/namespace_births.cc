#include "plan/namespace_births.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <ranges>
#include <vector>

namespace stasis::plan {
namespace {

/// It is shielded from others (kernel/signal.c, SIGNAL_UNKILLABLE) until a fault or seccomp has begun to end it:
/// SIGKILL comes from outside or from strict seccomp, SIGHUP and SIGINT stand for what it has asked reboot(2) for
/// (kernel/pid_namespace.c, reboot_pid_ns).
bool can_end_init(int signal) {
  constexpr int possible[] = {SIGHUP, SIGINT, SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGKILL, SIGSEGV, SIGSYS};
  return std::ranges::find(possible, signal) != std::end(possible);
}

}  // namespace

NamespaceBirths::NamespaceBirths(const model::Application& application, const model::PidNamespaces& spaces,
                                 Arrival arrival)
    : application_(application), tasks_(application), spaces_(spaces), arrival_(arrival) {
  if (!spaces_.any()) return;
  for (const auto& task : application.tasks) {
    if (!spaces_.is_init(task.pid) || !WIFSIGNALED(task.exit_status) || can_end_init(WTERMSIG(task.exit_status)))
      continue;
    object(fmt::format("{} was ended by signal {}, from which the init of a pid namespace is shielded", task.pid,
                       WTERMSIG(task.exit_status)));
  }
  if (arrival == Arrival::by_setns)
    check_by_setns();
  else
    check_by_clones();
}

void NamespaceBirths::check_by_clones() {
  for (const auto& task : application_.tasks) {
    if (task.pid != application_.root && spaces_.of(task.parent) != spaces_.born_in(task.pid))
      object(fmt::format("{} has come into the pid namespace of {} by setns: its parent {} is outside", task.pid,
                         task.pid_namespace, task.parent));
  }
  find_sessions();
}

void NamespaceBirths::check_by_setns() {
  adopters_.insert(spaces_.inits().begin(), spaces_.inits().end());
  std::map<Pid, Pid> parents;  // of dead leaders
  for (const auto& task : application_.tasks) {
    if (task.pid == application_.root || task.session == task.pid) continue;
    if (spaces_.contains(spaces_.of(task.session), spaces_.of(task.parent))) continue;
    // From now on they have one parent, whoever takes them over.
    siblings_.insert(task.pid);
    const auto* leader = tasks_.find(task.session);
    const Pid parent = leader == nullptr ? parents.emplace(task.session, task.parent).first->second : leader->parent;
    if (parent == task.parent && !spaces_.is_init(task.session)) continue;
    object(
        fmt::format("{} is in session {}, which is led from further inside than its parent {} lives: only its "
                    "leader can have created it, as a sibling",
                    task.pid, task.session, task.parent));
  }
}

Pid NamespaceBirths::creators_space(const Node& node) const {
  if (siblings_.contains(node.pid)) return spaces_.of(node.session);
  return node.has_parent() ? spaces_.of(node.parent) : spaces_.of(node.pid);
}

bool NamespaceBirths::allows(Pid space, Pid session) const {
  if (spaces_.of(session) == space) return true;
  const auto outer = outer_session_.find(space);
  return outer != outer_session_.end() && outer->second == session;
}

bool NamespaceBirths::allows_birth(const Node& leader, Pid session) const {
  if (!spaces_.any()) return true;
  if (arrival_ == Arrival::by_setns) return spaces_.contains(spaces_.of(session), creators_space(leader));
  // An init that leads a session may have to be born in another.
  const auto outer = outer_session_.find(leader.pid);
  if (outer != outer_session_.end() && outer->second != session) return false;
  return allows(spaces_.born_in(leader.pid), session);
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

namespace {

class Deferral {
 public:
  Deferral(CreationTree& tree, const model::PidNamespaces& spaces, const NamespaceBirths& births)
      : tree_(tree), spaces_(spaces), births_(births) {
    for (const auto& [pid, node] : tree_.nodes) {
      if (node.group != pid) led_by_.insert(node.group);
    }
  }

  std::string run() {
    tree_.deferred.clear(), tree_.birth_groups.clear();
    const auto order = birth_order(tree_);
    for (const Pid pid : std::views::reverse(order)) require_group(pid);
    for (const Pid pid : order) give_group(pid);
    if (problem_.empty()) put_in_order(order);
    return problem_;
  }

 private:
  void object(std::string text) {
    if (problem_.empty()) problem_ = std::move(text);
  }
  bool sees(Pid pid, Pid group) const { return spaces_.contains(spaces_.of(pid), spaces_.of(group)); }

  /// What is led from outside of its namespace, a process must have from birth; and so must whoever creates it, unless
  /// he can name the leader.
  void require_group(Pid pid) {
    auto& required = required_[pid];
    const auto& node = tree_.nodes.at(pid);
    if (!sees(pid, node.group)) required.insert(node.group);
    if (pid == tree_.root) return;
    const Pid creator = tree_.creator.at(pid);
    for (const Pid group : required) {
      if (!sees(creator, group)) required_[creator].insert(group);
    }
  }

  /// From the creator: that of the session, where nothing else is required.
  void give_group(Pid pid) {
    const auto& node = tree_.nodes.at(pid);
    const auto& required = required_.at(pid);
    const Pid inherited = pid == tree_.root ? group_of_root() : inherited_group(pid);
    born_in_[pid] = inherited;
    if (required.size() > 1) {
      object(fmt::format("{} would have to be born in two groups from outside of its pid namespace, {} and {}", pid,
                         *required.begin(), *std::next(required.begin())));
    } else if (!required.empty() && *required.begin() != inherited) {
      const Pid group = *required.begin(), creator = tree_.creator.at(pid);
      const bool can_be_founded = tree_.nodes.contains(group) || group != group_of_root();
      if (!sees(creator, group) || !can_be_founded)
        object(
            fmt::format("{} would have to be born in group {}, which its creator {} cannot join", pid, group, creator));
      tree_.birth_groups[pid] = born_in_[pid] = group;
    }
    if (!sees(pid, node.group) && led_by_.contains(pid))
      object(
          fmt::format("{} leads a group, and is in group {}, which it cannot join: its leader is outside of its pid "
                      "namespace",
                      pid, node.group));
  }
  Pid group_of_root() const {
    const auto& root = tree_.nodes.at(tree_.root);
    if (root.session == root.pid) return root.pid;
    return tree_.nodes.contains(root.group) ? Pid{-1} : root.group;
  }
  Pid inherited_group(Pid pid) const {
    const Pid creator = tree_.creator.at(pid);
    const auto early = tree_.before_setsid.find(creator);
    const bool follows =
        creator != tree_.root && tree_.is_leader(creator) &&
        (early == tree_.before_setsid.end() || std::ranges::find(early->second, pid) == early->second.end());
    return follows ? creator : born_in_.at(creator);
  }

  bool waits(Pid pid) const {
    return pid != tree_.root &&
           (spaces_.of(tree_.creator.at(pid)) != spaces_.born_in(pid) || tree_.birth_groups.contains(pid));
  }
  /// Who has to be there before it can be born: inits of namespaces that it, or its relay, enters, and the leader of
  /// its group.
  bool can_be_born(Pid pid) const {
    const Pid from = spaces_.of(tree_.creator.at(pid)), by = births_.creators_space(tree_.nodes.at(pid));
    const auto group = tree_.birth_groups.find(pid);
    return born_.contains(tree_.creator.at(pid)) && (by == from || born_.contains(by)) &&
           (spaces_.born_in(pid) == by || born_.contains(spaces_.born_in(pid))) &&
           (group == tree_.birth_groups.end() || can_be_joined(group->second, from));
  }
  /// If it is dead somebody stands in for it, in the namespace that it was led from.
  bool can_be_joined(Pid group, Pid from) const {
    if (tree_.nodes.contains(group)) return born_.contains(group);
    return spaces_.of(group) == from || born_.contains(spaces_.of(group));
  }
  void put_in_order(const std::vector<Pid>& order) {
    std::vector<Pid> waiting;
    std::ranges::copy_if(order, std::back_inserter(waiting), [&](Pid pid) { return waits(pid); });
    const std::set<Pid> all(waiting.begin(), waiting.end());
    const auto bear = [&](Pid first) {
      for (const Pid pid : birth_order(tree_, first, all)) born_.insert(pid);
    };
    bear(tree_.root);
    while (!waiting.empty()) {
      const auto next = std::ranges::find_if(waiting, [&](Pid pid) { return can_be_born(pid); });
      if (next == waiting.end()) return object(fmt::format("{} would have to be born before itself", waiting.front()));
      tree_.deferred.push_back(*next);
      bear(*next);
      waiting.erase(next);
    }
  }

  CreationTree& tree_;
  const model::PidNamespaces& spaces_;
  const NamespaceBirths& births_;
  std::set<Pid> led_by_;  ///< leaders of groups that others are in
  std::map<Pid, std::set<Pid>> required_;
  std::map<Pid, Pid> born_in_;  ///< their groups
  std::set<Pid> born_;
  std::string problem_;
};

}  // namespace

std::string defer_births(CreationTree& tree, const model::PidNamespaces& spaces, const NamespaceBirths& births) {
  return Deferral(tree, spaces, births).run();
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
    for (auto& thread : task.threads) thread.nested_tids.clear(), thread.childrens_namespace = {};
  }
  return flat;
}

}  // namespace stasis::plan
