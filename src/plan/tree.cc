#include "plan/tree.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <ranges>

#include "model/pid_namespaces.h"
#include "plan/birth_lines.h"
#include "plan/birth_search.h"
#include "plan/creators.h"
#include "plan/namespace_births.h"
#include "plan/tree_conflict.h"

namespace stasis::plan {
namespace {

constexpr const char* operation = "plan the process tree";

class TreePlanner {
 public:
  TreePlanner(const model::Application& application, const TreeLimits& limits, const Ancestors& wanted = {})
      : application_(application), limits_(limits), spaces_(application), wanted_(wanted) {}

  Result<Verdict> decide(const Births& likely) {
    TRY(collect());
    TRY(check_invariants());
    add_dead_leaders();
    if (is_found(Arrival::by_clones, likely) || (spaces_.any() && is_found(Arrival::by_setns, likely)))
      return Verdict::restorable;
    return undecided_.empty() ? Verdict::not_restorable : Verdict::undecided;
  }
  /// With these births alone.
  bool is_found_with(const Births& births) {
    limits_.search_steps = 0;
    const auto verdict = decide(births);
    return verdict && *verdict == Verdict::restorable;
  }
  CreationTree take_tree() { return std::move(tree_); }
  /// Why it is undecided: how far the search came, or what is not searched for.
  const std::string& undecided() const { return undecided_; }
  /// Why it is not restorable, where it is not because of some processes' parents.
  const std::string& contradiction() const { return contradiction_; }

 private:
  // ---- input

  Status collect() {
    tree_.root = application_.root;
    tree_.root_is_namespace_init = application_.root_is_namespace_init;
    for (const auto& task : application_.tasks) {
      const bool zombie = task.state == model::TaskState::zombie;
      if (!tree_.nodes
               .emplace(task.pid, Node{task.pid, task.parent, task.group, task.session, zombie, task.exit_status})
               .second) {
        return fail(Error::invalid(operation, fmt::format("pid {} occurs twice", task.pid)));
      }
      for (const auto id : {task.pid.value, task.group.value, task.session.value}) tree_.taken.insert(id);
      for (const auto& thread : task.threads) tree_.taken.insert(thread.tid.value);
    }
    if (!tree_.nodes.contains(tree_.root)) return fail(Error::invalid(operation, "the root is not among the tasks"));
    root_session_ = tree_.nodes.at(tree_.root).session;
    return {};
  }

  bool exists(Pid pid) const { return tree_.nodes.contains(pid); }
  bool inherited(Pid session) const { return session == root_session_ && session != tree_.root; }

  Status broken(std::string text) const { return fail(Error::invalid(operation, std::move(text))); }

  Status check_invariants() const {
    if (auto problem = spaces_.problem(); !problem.empty()) return broken(std::move(problem));
    std::map<Pid, Pid> session_of_group;
    std::set<Pid> sessions;
    for (const auto& [pid, node] : tree_.nodes) sessions.insert(node.session);
    for (const auto& [pid, node] : tree_.nodes) {
      if (pid != tree_.root && !exists(node.parent))
        return broken(fmt::format("the parent {} of {} is not in the tree", node.parent, pid));
      if (pid != tree_.root && tree_.nodes.at(node.parent).zombie)
        return broken(fmt::format("zombie {} has a child, {}", node.parent, pid));
      if (node.session == pid && node.group != pid)
        return broken(fmt::format("session leader {} is not in its own group", pid));
      const auto [group, first] = session_of_group.emplace(node.group, node.session);
      if (!first && group->second != node.session)
        return broken(fmt::format("group {} spans the sessions {} and {}", node.group, group->second, node.session));
      if (sessions.contains(node.group) && node.session != node.group && !(inherited(node.session))) {
        return broken(fmt::format("{} is in the group of session {} but in session {}", pid, node.group, node.session));
      }
      if (exists(node.session) && tree_.nodes.at(node.session).session != node.session) {
        return broken(fmt::format("{} leads no session, yet {} is in it", node.session, pid));
      }
      if (exists(node.group) && tree_.nodes.at(node.group).session != node.session) {
        return broken(fmt::format("{} is in group {}, whose leader is in another session", pid, node.group));
      }
      TRY(check_visible(node));
    }
    TRY(check_acyclic());
    return check_threads();
  }

  /// 0: the leader lives outside of the pid namespace.
  Status check_visible(const Node& node) const {
    const bool outside = node.session.value <= 0 || node.group.value <= 0;
    if (outside && !application_.shell_job) {
      return fail(
          Error::conflict(operation,
                          fmt::format("the session or group leader of {} is outside of its pid namespace", node.pid))
              .advise("start the namespace's init with setsid, or pass --shell-job"));
    }
    const bool external = inherited(node.session) && !application_.shell_job;
    if (external && node.pid == tree_.root) {
      return fail(
          Error::conflict(operation, fmt::format("the root {} does not lead its session {}", node.pid, node.session))
              .advise("pass --shell-job, which takes session and terminal from the caller"));
    }
    return {};
  }
  Status check_acyclic() const {
    std::set<Pid> rooted{tree_.root};
    for (const auto& [pid, node] : tree_.nodes) {
      std::vector<Pid> way;
      for (Pid at = pid; rooted.insert(at).second; at = tree_.nodes.at(at).parent) way.push_back(at);
      const Pid end = way.empty() ? pid : tree_.nodes.at(way.back()).parent;
      if (std::ranges::find(way, end) != way.end()) return broken(fmt::format("the parents of {} form a cycle", pid));
    }
    return {};
  }
  Status check_threads() const {
    std::map<Tid, Pid> living;
    for (const auto& task : application_.tasks) {
      for (const auto& thread : task.threads) {
        const Pid as_pid{thread.tid.value};
        if (as_pid != task.pid && exists(as_pid))
          return broken(fmt::format("thread {} of {} has the id of a process", thread.tid, task.pid));
        if (!thread.has_ended()) living[thread.tid] = task.pid;
      }
    }
    for (const auto& task : application_.tasks) {
      const auto parent = living.find(task.parent_thread);
      if (task.parent_thread.value != 0 && (parent == living.end() || parent->second != task.parent))
        return broken(fmt::format("{} is the child of {}, which is no living thread of its parent {}", task.pid,
                                  task.parent_thread, task.parent));
    }
    return {};
  }

  // ---- the search

  bool is_found(Arrival arrival, const Births& likely) {
    births_.emplace(application_, spaces_, arrival);
    tree_.adopters = births_->adopters();
    name_parents_of_dead_leaders();
    contradiction_ = births_->obstacle();
    undecided_.clear(), deferral_problem_.clear();
    if (!contradiction_.empty()) {
      if (births_->is_undecided()) undecided_ = contradiction_;
      return false;
    }
    search_.emplace(tree_, lines_, *births_, limits_, [this] { return is_constructed(); });
    if (search_->take_over(likely) || search_->run()) return true;
    contradiction_ = conflict_;
    if (search_->gave_up()) {
      undecided_ = fmt::format(
          "after {} steps of search over the birth sessions of {} leaders; the last contradiction "
          "was: {}",
          search_->steps(), search_->leaders(), conflict_);
    } else {
      undecided_ = deferral_problem_;
    }
    return false;
  }

  // ---- sessions

  void add_dead_leaders() {
    std::set<Pid> missing;
    for (const auto& [pid, node] : tree_.nodes) {
      if (!exists(node.session) && !inherited(node.session)) missing.insert(node.session);
    }
    for (const Pid pid : missing) {
      Node dead{pid, {}, pid, pid};
      dead.transient = true;
      tree_.nodes.emplace(pid, dead);
    }
  }

  /// The session a process was born in.
  Pid born(Pid pid) const { return *lines_.known(lines_.birth_of(pid)); }
  Pid leader_of_session(Pid session) const { return session == root_session_ ? tree_.root : session; }

  // ---- the creation tree for fixed birth sessions

  /// What a dead leader's parent would have to be is mostly known with the births alone. Whom inits create needs no
  /// setns, but may have to be in other groups from outside than they.
  bool is_constructed() { return is_constructed(true) || (spaces_.any() && is_constructed(false)); }
  bool is_constructed(bool by_inits) {
    const bool constructed = construct(by_inits);
    if (!constructed) name_parents_of_dead_leaders();
    return constructed;
  }
  void name_parents_of_dead_leaders() {
    for (auto& [pid, node] : tree_.nodes) {
      if (node.transient) node.parent = births_->parent_of_dead(pid);
    }
  }

  bool construct(bool by_inits) {
    std::map<Pid, std::vector<Pid>> sessions;  // those born in each
    Before before;
    for (const auto& [pid, node] : tree_.nodes) {
      if (pid != tree_.root) sessions[born(pid)].push_back(pid);
    }
    if (!find_siblings()) return false;
    for (const auto& [pid, node] : tree_.nodes) {
      if (!lines_.is_restricted(node)) continue;
      if (!constrain(node, before)) return false;
    }
    for (const auto& [pid, above] : wanted_) {
      for (const Pid creator : above) {
        if (creator != tree_.root && born(creator) == born(pid)) before[pid].insert(creator);
      }
    }
    tree_.creator.clear();
    tree_.before_setsid.clear();
    tree_.children.clear();
    for (auto& [session, members] : sessions) {
      if (!order_session(session, members, before, by_inits)) return false;
    }
    for (const auto& [session, members] : sessions) {
      for (const Pid pid : members) {
        const Pid creator = tree_.creator.at(pid);
        auto& node = tree_.nodes.at(pid);
        if (!node.has_parent() && spaces_.of(creator) != spaces_.of(pid)) node.parent = creator;
        const bool early = creator != tree_.root && tree_.is_leader(creator) && born(pid) != creator;
        (early ? tree_.before_setsid : tree_.children)[creator].push_back(pid);
      }
    }
    if (!spaces_.any()) return true;
    deferral_problem_ = defer_births(tree_, spaces_, *births_);
    if (!deferral_problem_.empty()) conflict_ = deferral_problem_;
    return deferral_problem_.empty();
  }

  /// Who has created siblings has the same parent, and had it when he was dead already.
  bool find_siblings() {
    tree_.siblings.clear();
    if (!spaces_.any()) return true;
    for (const auto& [pid, node] : tree_.nodes) {
      if (pid == tree_.root) continue;
      for (Pid at = pid; births_->is_sibling(tree_.nodes.at(at), born(at)); at = born(at)) {
        tree_.siblings.insert(at);
        auto& elder = tree_.nodes.at(born(at));
        if (elder.transient && !elder.has_parent()) elder.parent = node.parent;
        if (elder.parent == node.parent) continue;
        conflict_ = fmt::format("{} would have to be a sibling of {}, whose parent is another", pid, elder.pid);
        return false;
      }
    }
    return true;
  }

  /// The final parent must be among the creators: within its own birth session that is an order in the block.
  bool constrain(const Node& node, Before& before) {
    const Pid above = born(node.parent), session = born(node.pid);
    if (!lines_.is_on_the_way(above, session)) {
      conflict_ = fmt::format("{} was born in session {}, which cannot descend from that of its parent {} ({})",
                              node.pid, session, node.parent, above);
      return false;
    }
    for (Pid at = session; spaces_.any() && at != above; at = tree_.born_session.at(at)) {
      if (at == node.parent ||
          births_->can_be_between(tree_.nodes.at(at), tree_.born_session.at(at), spaces_.of(node.parent)))
        continue;
      conflict_ = fmt::format(
          "{}, who leads a session between {} and its parent {}, lives in another pid namespace "
          "than the parent",
          at, node.pid, node.parent);
      return false;
    }
    const Pid follower = lines_.first_below(above, session, node.pid);
    if (follower != node.parent) before[follower].insert(node.parent);
    return true;
  }

  /// They hang under the session's leader; in namespaces whose inits are born in the session, under these.
  bool order_session(Pid session, const std::vector<Pid>& members, Before& before, bool by_inits) {
    Places places;
    if (spaces_.any()) places = places_of(session, members, before, by_inits);
    const auto creators = creators_of(members, leader_of_session(session), before, places);
    if (!creators) {
      conflict_ = fmt::format("{} would have to be born both before and after its own descendant in session {}",
                              creators.error(), session);
      return false;
    }
    for (const auto& [pid, creator] : *creators) {
      if (spaces_.any() && !can_create(creator, pid)) return false;
    }
    tree_.creator.insert(creators->begin(), creators->end());
    return true;
  }

  /// Namespaces are nested: whoever is created further inside cannot be above.
  Places places_of(Pid session, const std::vector<Pid>& members, Before& before, bool by_inits) const {
    Places places;
    for (const Pid pid : members) {
      const Pid by = births_->creators_space(tree_.nodes.at(pid), session);
      places[pid] = {spaces_.level(by), spaces_.level(spaces_.of(pid))};
      const bool init_is_there = by.value != 0 && by != leader_of_session(session) && born(by) == session;
      if (by_inits && init_is_there && before[pid].empty() && births_->can_init_create(by, session, pid))
        before[pid].insert(by);
    }
    return places;
  }

  bool can_create(Pid creator, Pid pid) {
    const auto& node = tree_.nodes.at(pid);
    const Pid session = born(pid), space = births_->creators_space(node, session);
    // Only to an init come those whom others have created from further outside. Dead leaders' parents are unknown.
    const bool from_outside = node.has_parent() ? tree_.adopters.contains(node.parent) : !tree_.adopters.empty();
    const bool by_elder = (creator == session || tree_.siblings.contains(creator)) &&
                          spaces_.contains(spaces_.of(creator), spaces_.born_in(pid));
    if (tree_.siblings.contains(pid)
            ? by_elder
            : spaces_.of(creator) == space || (from_outside && spaces_.contains(spaces_.of(creator), space)))
      return true;
    conflict_ = fmt::format("{} would have to be created by {}, which lives in another pid namespace than its parent",
                            pid, creator);
    return false;
  }

  const model::Application& application_;
  TreeLimits limits_;
  model::PidNamespaces spaces_;
  Ancestors wanted_;
  std::optional<NamespaceBirths> births_;
  CreationTree tree_;
  Pid root_session_;
  BirthLines lines_{tree_, root_session_};
  std::optional<BirthSearch> search_;
  std::string conflict_ = "the sessions contradict each other";
  std::string undecided_, contradiction_, deferral_problem_;
};

}  // namespace

Result<Verdict> decide_tree(const model::Application& application, const TreeLimits& limits) {
  return TreePlanner(application, limits).decide({});
}

Result<CreationTree> plan_tree(const model::Application& application, const TreeLimits& limits, const Births& likely) {
  TreePlanner planner(application, limits);
  const auto verdict = TRY(planner.decide(likely));
  if (verdict == Verdict::undecided) return fail(Error::unsupported(operation, "undecided: " + planner.undecided()));
  if (verdict == Verdict::restorable) return planner.take_tree();
  const auto conflict = smallest_conflict(application, limits);
  return fail(Error::conflict(
      operation, "no sequence of fork, setsid and exit leads to this tree; " +
                     (conflict.empty() ? planner.contradiction() : describe_conflict(application, conflict))));
}

std::optional<CreationTree> tree_with(const model::Application& application, const Births& births,
                                      const Ancestors& wanted) {
  TreePlanner planner(application, {}, wanted);
  return planner.is_found_with(births) ? std::optional(planner.take_tree()) : std::nullopt;
}

bool depends_on_parent_thread(const model::TaskIndex& tasks, const model::Task& task) {
  if (task.parent_thread.value != 0) return task.parent_thread != leader_of(task.parent);
  const auto* parent = tasks.find(task.parent);
  return parent != nullptr && parent->leader_has_ended() &&
         std::ranges::any_of(task.threads, &model::Thread::parent_death_signal);
}

std::vector<Pid> birth_order(const CreationTree& tree, Pid first, const std::set<Pid>& without) {
  std::vector<Pid> order, open{first};
  while (!open.empty()) {
    const Pid pid = open.back();
    open.pop_back();
    order.push_back(pid);
    for (const auto* of : {&tree.children, &tree.before_setsid}) {  // pushed last, popped first
      const auto found = of->find(pid);
      if (found == of->end()) continue;
      std::ranges::copy_if(found->second | std::views::reverse, std::back_inserter(open),
                           [&](Pid child) { return !without.contains(child); });
    }
  }
  return order;
}

std::vector<Pid> birth_order(const CreationTree& tree) {
  const std::set<Pid> deferred(tree.deferred.begin(), tree.deferred.end());
  auto order = birth_order(tree, tree.root, deferred);
  for (const Pid pid : tree.deferred) std::ranges::copy(birth_order(tree, pid, deferred), std::back_inserter(order));
  return order;
}

Births births_in(const Program& program, Pid root_session) {
  std::map<Pid, Pid> session{{Pid{0}, root_session}};  // of everybody, as the program goes on
  Births births;
  for (const auto& command : program.commands) {
    if (const auto child = created_by(command.action)) session[*child] = session[command.pid];
    if (!std::holds_alternative<SetSid>(command.action)) continue;
    auto& own = session[command.pid];
    if (own != command.pid) births[command.pid] = own;  // not the root
    own = command.pid;
  }
  return births;
}

}  // namespace stasis::plan
