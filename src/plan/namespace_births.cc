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
  find_outer_groups();
}

/// Whoever is not taken over by an init has them from his parent, if the parent's namespace does not know them either.
void NamespaceBirths::find_outer_groups() {
  std::map<Pid, std::vector<const model::Task*>> children;
  for (const auto& task : application_.tasks) children[task.parent].push_back(&task);
  std::vector<const model::Task*> order{tasks_.find(application_.root)};
  for (size_t i = 0; i < order.size(); ++i) std::ranges::copy(children[order[i]->pid], std::back_inserter(order));
  for (const auto* task : order | std::views::reverse) {
    auto& own = outer_groups_[task->pid];
    if (!spaces_.contains(spaces_.of(task->pid), spaces_.of(task->group))) own.insert(task->group);
    if (adopters_.contains(task->parent)) continue;
    for (const Pid group : own) {
      if (!spaces_.contains(spaces_.of(task->parent), spaces_.of(group))) outer_groups_[task->parent].insert(group);
    }
  }
}

bool NamespaceBirths::can_init_create(Pid init, Pid session, Pid pid) const {
  const auto is_outside = [&](Pid group) { return !spaces_.contains(init, spaces_.of(group)); };
  const auto* about = tasks_.find(init);
  const Pid passed_on = is_outside(about->group) ? about->group : session;
  const auto found = outer_groups_.find(pid);
  return found == outer_groups_.end() ||
         std::ranges::all_of(found->second, [&](Pid group) { return group == passed_on || !is_outside(group); });
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
  for (const auto& task : application_.tasks) {
    if (task.pid == application_.root || task.session == task.pid) continue;
    if (spaces_.contains(spaces_.of(task.session), spaces_.of(task.parent))) continue;
    // From their birth on they have one parent, whoever takes them over.
    const auto* leader = tasks_.find(task.session);
    const Pid parent =
        leader == nullptr ? parents_of_dead_.emplace(task.session, task.parent).first->second : leader->parent;
    if (parent == task.parent && !spaces_.is_init(task.session)) continue;
    object(
        fmt::format("{} is in session {}, which is led from further inside than its parent {} lives: only its "
                    "leader can have created it, as a sibling",
                    task.pid, task.session, task.parent));
  }
}

bool NamespaceBirths::is_sibling(const Node& node, Pid birth_session) const {
  return spaces_.any() && node.has_parent() && !spaces_.contains(spaces_.of(birth_session), spaces_.of(node.parent));
}

Pid NamespaceBirths::creators_space(const Node& node, Pid birth_session) const {
  if (is_sibling(node, birth_session)) return spaces_.of(birth_session);
  return node.has_parent() ? spaces_.of(node.parent) : spaces_.of(node.pid);
}

bool NamespaceBirths::can_be_between(const Node& leader, Pid session, Pid space) const {
  const Pid own = spaces_.of(leader.pid);
  return own == space ? !leader.has_parent() || creators_space(leader, session) == space
                      : !spaces_.contains(own, space);
}

bool NamespaceBirths::allows(Pid space, Pid session) const {
  if (spaces_.of(session) == space) return true;
  const auto outer = outer_session_.find(space);
  return outer != outer_session_.end() && outer->second == session;
}

bool NamespaceBirths::allows_birth(const Node& leader, Pid session) const {
  if (!spaces_.any()) return true;
  if (arrival_ == Arrival::by_setns)
    return spaces_.contains(spaces_.of(session), creators_space(leader, session)) &&
           (!is_sibling(leader, session) || can_be_sibling(leader, session));
  // An init that leads a session may have to be born in another.
  const auto outer = outer_session_.find(leader.pid);
  if (outer != outer_session_.end() && outer->second != session) return false;
  return allows(spaces_.born_in(leader.pid), session);
}

bool NamespaceBirths::can_be_sibling(const Node& leader, Pid session) const {
  const auto* elder = tasks_.find(session);
  const Pid parent = elder == nullptr ? parent_of_dead(session) : elder->parent;
  return spaces_.contains(spaces_.of(session), spaces_.born_in(leader.pid)) && !spaces_.is_init(session) &&
         (parent.value == 0 || parent == leader.parent);
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
    const auto order = birth_order(tree_);
    for (const Pid pid : std::views::reverse(order)) require_groups(pid);
    do {
      tree_.deferred.clear(), tree_.birth_groups.clear(), tree_.moved.clear();
      for (const Pid pid : order) give_group(pid);
    } while (problem_.empty() && !put_in_order(order) && move_later());
    // What a creator is born in he may not come back to.
    for (auto& [creator, early] : tree_.before_setsid)
      std::ranges::stable_partition(early, [&](Pid child) { return !is_born_with_creator_moved(child); });
    return problem_;
  }

 private:
  void object(std::string text) {
    if (problem_.empty()) problem_ = std::move(text);
  }
  bool sees(Pid pid, Pid group) const { return spaces_.contains(spaces_.of(pid), spaces_.of(group)); }
  /// Whether it is put into the group by its parent, or by the relay that is its parent as yet. Who is in a session
  /// that is led from inside has a parent of another.
  bool can_be_put(Pid pid, Pid group) const {
    const auto& node = tree_.nodes.at(pid);
    const Pid by = node.has_parent() && !tree_.siblings.contains(pid) ? node.parent : pid;
    return sees(by, group);
  }
  bool leads(Pid pid) const { return led_by_.contains(pid); }
  /// Into which it can come only with another's help.
  bool ends_outside(Pid pid) const { return !sees(pid, tree_.nodes.at(pid).group); }

  /// Groups that are led from outside of its namespace, and that it has to be in at some time: its own, and those that
  /// whom it creates has to be born in. Where nobody can put it into one, it is born in that itself.
  void require_groups(Pid pid) {
    auto& required = required_[pid];
    const auto& node = tree_.nodes.at(pid);
    if (ends_outside(pid)) {
      if (!leads(pid)) required.insert(node.group);
      if (leads(pid) && !can_be_put(pid, node.group))
        object(
            fmt::format("{} leads a group, and is in group {}, which it cannot come back to: its leader is outside of "
                        "the pid namespaces of both {} and its parent",
                        pid, node.group, pid));
    }
    if (pid == tree_.root) return;
    const Pid creator = tree_.creator.at(pid);
    for (const Pid group : required) {
      if (!can_be_put(pid, group) && !sees(creator, group)) required_[creator].insert(group);
    }
  }

  /// From the creator: that of the session, where nothing else is required.
  void give_group(Pid pid) {
    if (pid == tree_.root) {
      born_in_[pid] = group_of_root();
      return;
    }
    const auto& required = required_.at(pid);
    const Pid inherited = inherited_group(pid);
    std::vector<Pid> from_birth;
    std::ranges::copy_if(required, std::back_inserter(from_birth), [&](Pid group) { return !can_be_put(pid, group); });
    if (from_birth.size() > 1) {
      object(fmt::format("{} would have to be born in two groups from outside of its pid namespace, {} and {}", pid,
                         from_birth[0], from_birth[1]));
    }
    if (from_birth.size() == 1 && from_birth[0] == tree_.nodes.at(pid).group && required.size() > 1) {
      const Pid other = *std::ranges::find_if(required, [&](Pid group) { return group != from_birth[0]; });
      object(fmt::format("{} would have to be in group {} for those whom it creates, and cannot come back to group {}",
                         pid, other, from_birth[0]));
    }
    Pid group = inherited;
    if (!from_birth.empty())
      group = from_birth[0];
    else if (!required.empty() && !required.contains(inherited) && !moved_later_.contains(pid))
      group = *required.begin();
    born_in_[pid] = group;
    if (group != inherited) tree_.birth_groups[pid] = group;
    auto others = required;
    if (ends_outside(pid)) others.insert(tree_.nodes.at(pid).group);
    const bool stays = others.empty() || (others.size() == 1 && others.contains(group) && !leads(pid));
    if (group != inherited) check_founding(pid, group);
    if (stays) return;
    for (const Pid other : others) check_founding(pid, other);
    tree_.moved[pid] = {group, std::move(others)};
  }
  /// Groups of the root's that are led from outside of the tree begin nowhere in it.
  void check_founding(Pid pid, Pid group) {
    if (!tree_.nodes.contains(group) && group == group_of_root())
      object(fmt::format("{} would have to come into group {}, which is led from outside of the tree", pid, group));
  }
  Pid group_of_root() const {
    const auto& root = tree_.nodes.at(tree_.root);
    if (root.session == root.pid) return root.pid;
    return tree_.nodes.contains(root.group) ? Pid{-1} : root.group;
  }
  bool is_early(Pid pid) const {
    const auto early = tree_.before_setsid.find(tree_.creator.at(pid));
    return early != tree_.before_setsid.end() && std::ranges::find(early->second, pid) != early->second.end();
  }
  Pid inherited_group(Pid pid) const {
    const Pid creator = tree_.creator.at(pid);
    const bool follows = creator != tree_.root && tree_.is_leader(creator) && !is_early(pid);
    return follows ? creator : born_in_.at(creator);
  }

  /// Its creator is put into its group first, and that before he leads a session.
  bool is_born_with_creator_moved(Pid pid) const {
    const auto group = tree_.birth_groups.find(pid);
    return group != tree_.birth_groups.end() && !sees(tree_.creator.at(pid), group->second) && is_early(pid);
  }
  bool waits(Pid pid) const {
    if (pid == tree_.root) return false;
    const bool comes = spaces_.of(tree_.creator.at(pid)) != spaces_.born_in(pid) ||
                       (tree_.birth_groups.contains(pid) && !is_born_with_creator_moved(pid));
    const auto early = tree_.before_setsid.find(pid);
    return comes || (early != tree_.before_setsid.end() &&
                     std::ranges::any_of(early->second, [&](Pid child) { return is_born_with_creator_moved(child); }));
  }
  /// Who has to be there before it can be born: inits of namespaces that it, or its relay, enters, and the leaders of
  /// its group and of those that it passes on before it leads a session.
  bool can_be_born(Pid pid) const {
    const Pid creator = tree_.creator.at(pid);
    const Pid from = spaces_.of(creator), by = births_.creators_space(tree_.nodes.at(pid), born_session(pid));
    const auto early = tree_.before_setsid.find(pid);
    return born_.contains(creator) && (by == from || born_.contains(by)) &&
           (spaces_.born_in(pid) == by || born_.contains(spaces_.born_in(pid))) && can_be_joined(pid) &&
           (early == tree_.before_setsid.end() || std::ranges::all_of(early->second, [&](Pid child) {
              return !is_born_with_creator_moved(child) || can_be_joined(child);
            }));
  }
  Pid born_session(Pid pid) const {
    const auto born = tree_.born_session.find(pid);
    return born == tree_.born_session.end() ? tree_.nodes.at(pid).session : born->second;
  }
  /// If its leader is dead somebody stands in for it, in the namespace that it was led from.
  bool can_be_joined(Pid pid) const {
    const auto group = tree_.birth_groups.find(pid);
    if (group == tree_.birth_groups.end()) return true;
    if (tree_.nodes.contains(group->second)) return born_.contains(group->second);
    const Pid space = spaces_.of(group->second);
    return space == spaces_.of(tree_.creator.at(pid)) || space.value == 0 || born_.contains(space);
  }
  /// false: nobody of those who wait can be the next.
  bool put_in_order(const std::vector<Pid>& order) {
    waiting_.clear(), born_.clear();
    std::ranges::copy_if(order, std::back_inserter(waiting_), [&](Pid pid) { return waits(pid); });
    const std::set<Pid> all(waiting_.begin(), waiting_.end());
    const auto bear = [&](Pid first) {
      for (const Pid pid : birth_order(tree_, first, all)) born_.insert(pid);
    };
    bear(tree_.root);
    while (!waiting_.empty()) {
      const auto next = std::ranges::find_if(waiting_, [&](Pid pid) { return can_be_born(pid); });
      if (next == waiting_.end()) return false;
      tree_.deferred.push_back(*next);
      bear(*next);
      waiting_.erase(next);
    }
    return true;
  }
  /// Where groups are led from inside of each other's members' namespaces, somebody is born before his group is, and
  /// put into it afterwards.
  bool move_later() {
    for (const Pid pid : waiting_) {
      const auto group = tree_.birth_groups.find(pid);
      if (group != tree_.birth_groups.end() && can_be_put(pid, group->second) && moved_later_.insert(pid).second)
        return true;
    }
    object(fmt::format("{} would have to be born before itself", waiting_.front()));
    return false;
  }

  CreationTree& tree_;
  const model::PidNamespaces& spaces_;
  const NamespaceBirths& births_;
  std::set<Pid> led_by_;  ///< leaders of groups that others are in
  std::map<Pid, std::set<Pid>> required_;
  std::map<Pid, Pid> born_in_;  ///< their groups
  std::set<Pid> moved_later_, born_;
  std::vector<Pid> waiting_;
  std::string problem_;
};

}  // namespace

std::string defer_births(CreationTree& tree, const model::PidNamespaces& spaces, const NamespaceBirths& births) {
  return Deferral(tree, spaces, births).run();
}

}  // namespace stasis::plan
