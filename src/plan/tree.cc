#include "plan/tree.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

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
  TreePlanner(const model::Application& application, const TreeLimits& limits)
      : application_(application), limits_(limits), spaces_(application) {}

  Result<Verdict> decide(const Births& likely) {
    TRY(collect());
    TRY(check_invariants());
    namespace_births_.emplace(application_, spaces_);
    add_dead_leaders();
    tree_.birth_groups = namespace_births_->birth_groups();
    search_.emplace(tree_, lines_, *namespace_births_, limits_, [this] { return construct(); });
    if (namespace_births_->obstacle().empty() && (search_->take_over(likely) || search_->run()))
      return Verdict::restorable;
    if (search_->gave_up()) return Verdict::undecided;
    return spaces_.any() ? decide_without_namespaces() : Result<Verdict>(Verdict::not_restorable);
  }
  CreationTree take_tree() { return std::move(tree_); }
  /// How far an undecided search came.
  std::string progress() const {
    if (!search_->gave_up()) {
      return fmt::format(
          "undecided, for only histories in which nobody enters a pid namespace by setns are searched: {}",
          namespace_births_->obstacle().empty() ? conflict_ : namespace_births_->obstacle());
    }
    return fmt::format(
        "undecided after {} steps of search over the birth sessions of {} leaders; the last contradiction was: {}",
        search_->steps(), search_->leaders(), conflict_);
  }

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
    for (const auto& task : application_.tasks) {
      for (const auto& thread : task.threads) {
        const Pid as_pid{thread.tid.value};
        if (as_pid != task.pid && exists(as_pid))
          return broken(fmt::format("thread {} of {} has the id of a process", thread.tid, task.pid));
      }
    }
    return {};
  }

  /// No clone of inits leads to the tree: perhaps setns does.
  Result<Verdict> decide_without_namespaces() const {
    const auto flat = without_pid_namespaces(application_, spaces_);
    const auto verdict = TRY(decide_tree(flat, limits_));
    return verdict == Verdict::not_restorable ? verdict : Verdict::undecided;
  }

  // ---- sessions

  void add_dead_leaders() {
    std::set<Pid> missing;
    for (const auto& [pid, node] : tree_.nodes) {
      if (!exists(node.session) && !inherited(node.session)) missing.insert(node.session);
    }
    for (const Pid pid : missing) {
      Node dead{pid, Pid{0}, pid, pid};
      dead.transient = true;
      tree_.nodes.emplace(pid, dead);
    }
  }

  /// The session a process was born in.
  Pid born(Pid pid) const { return *lines_.known(lines_.birth_of(pid)); }
  Pid leader_of_session(Pid session) const { return session == root_session_ ? tree_.root : session; }

  // ---- the creation tree for fixed birth sessions

  bool construct() {
    std::map<Block, std::vector<Pid>> blocks;  // those born in it
    Before before;
    for (const auto& [pid, node] : tree_.nodes) {
      if (pid != tree_.root) blocks[{born(pid), spaces_.born_in(pid)}].push_back(pid);
    }
    for (const auto& [init, group] : namespace_births_->birth_groups()) {
      if (exists(group)) before[init].insert(group);
    }
    for (const auto& [pid, node] : tree_.nodes) {
      if (!lines_.is_restricted(node)) continue;
      if (!constrain(node, before)) return false;
    }
    tree_.creator.clear();
    tree_.before_setsid.clear();
    tree_.children.clear();
    for (auto& [block, members] : blocks) {
      if (!order_block(block, members, before)) return false;
    }
    for (const auto& [block, members] : blocks) {
      for (const Pid pid : members) {
        const Pid creator = tree_.creator.at(pid);
        const bool early = creator != tree_.root && tree_.is_leader(creator) && born(pid) != creator;
        (early ? tree_.before_setsid : tree_.children)[creator].push_back(pid);
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
    const Pid follower = lines_.first_below(above, session, node.pid);
    if (follower != node.parent) before[follower].insert(node.parent);
    return true;
  }

  using Block = std::pair<Pid, Pid>;  ///< a session, and a pid namespace

  /// In each namespace they hang under the session's leader, or if that is outside under the init.
  Pid top_of(const Block& block) const {
    const auto [session, space] = block;
    return spaces_.of(session) == space ? leader_of_session(session) : space;
  }
  bool order_block(const Block& block, const std::vector<Pid>& members, const Before& all) {
    // An init is above all others of its namespace anyway.
    const Before restricted = spaces_.any() ? within(block, members, all) : Before();
    const Before& before = spaces_.any() ? restricted : all;
    const auto creators = creators_of(members, top_of(block), before);
    if (!creators) {
      conflict_ = fmt::format("{} would have to be born both before and after its own descendant in session {}",
                              creators.error(), block.first);
      return false;
    }
    tree_.creator.insert(creators->begin(), creators->end());
    return true;
  }

  Before within(const Block& block, const std::vector<Pid>& members, const Before& all) const {
    Before before;
    for (const Pid pid : members) {
      const auto found = all.find(pid);
      if (found == all.end()) continue;
      for (const Pid earlier : found->second) {
        if (spaces_.born_in(earlier) == block.second) before[pid].insert(earlier);
      }
    }
    return before;
  }

  const model::Application& application_;
  TreeLimits limits_;
  model::PidNamespaces spaces_;
  std::optional<NamespaceBirths> namespace_births_;
  CreationTree tree_;
  Pid root_session_;
  BirthLines lines_{tree_, root_session_};
  std::optional<BirthSearch> search_;
  std::string conflict_ = "the sessions contradict each other";
};

}  // namespace

Result<Verdict> decide_tree(const model::Application& application, const TreeLimits& limits) {
  return TreePlanner(application, limits).decide({});
}

Result<CreationTree> plan_tree(const model::Application& application, const TreeLimits& limits, const Births& likely) {
  TreePlanner planner(application, limits);
  const auto verdict = TRY(planner.decide(likely));
  if (verdict == Verdict::undecided) return fail(Error::unsupported(operation, planner.progress()));
  if (verdict == Verdict::restorable) return planner.take_tree();
  const model::PidNamespaces spaces(application);
  const auto flat = spaces.any() ? without_pid_namespaces(application, spaces) : application;
  return fail(Error::conflict(operation, "no sequence of fork, setsid and exit leads to this tree; " +
                                             describe_conflict(flat, smallest_conflict(flat, limits))));
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
