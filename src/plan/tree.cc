#include "plan/tree.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

namespace stasis::plan {
namespace {

constexpr const char* operation = "plan the process tree";

class TreePlanner {
 public:
  TreePlanner(const model::Application& application, const TreeLimits& limits)
      : application_(application), limits_(limits) {}

  Result<CreationTree> run() {
    TRY(collect());
    TRY(check_invariants());
    add_dead_leaders();
    list_sessions();
    if (!search(0)) {
      if (steps_ >= limits_.search_steps) {
        return fail(Error::unsupported(
            operation, fmt::format("undecided after {} steps of search over the birth sessions of {} leaders", steps_,
                                   leaders_.size())));
      }
      return fail(Error::conflict(
          operation, "no sequence of fork, setsid and exit leads to these parents and sessions: " + conflict_));
    }
    return std::move(tree_);
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
      TRY(check_acyclic(pid));
    }
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
  Status check_acyclic(Pid pid) const {
    Pid at = pid;
    for (size_t steps = 0; at != tree_.root; ++steps) {
      if (steps > tree_.nodes.size()) return broken(fmt::format("the parents of {} form a cycle", pid));
      at = tree_.nodes.at(at).parent;
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

  void list_sessions() {
    for (const auto& [pid, node] : tree_.nodes) {
      if (node.session == pid && pid != tree_.root) leaders_.push_back(pid);
      sessions_.insert(node.session);
    }
    // Parents first: their birth sessions bound those of the children.
    std::ranges::stable_sort(leaders_, {}, [&](Pid pid) { return depth(pid); });
  }
  size_t depth(Pid pid) const {
    size_t steps = 0;
    for (Pid at = pid; at != tree_.root && exists(at) && !tree_.nodes.at(at).transient; at = tree_.nodes.at(at).parent)
      ++steps;
    return steps;
  }

  /// The session a process was born in.
  Pid born(Pid pid) const {
    const auto& node = tree_.nodes.at(pid);
    if (pid == tree_.root || node.session != pid) return node.session;
    return tree_.born_session.at(pid);
  }
  Pid leader_of_session(Pid session) const { return session == root_session_ ? tree_.root : session; }

  /// Candidates for a leader's birth session, likely ones first: its parent's session, its foreign children's, the
  /// others.
  std::vector<Pid> candidates(Pid leader) const {
    std::vector<Pid> list;
    const auto add = [&](Pid session) {
      if (session != leader && std::ranges::find(list, session) == list.end()) list.push_back(session);
    };
    const auto& node = tree_.nodes.at(leader);
    if (!node.transient) {
      for (const auto& [pid, other] : tree_.nodes) {
        if (other.parent == leader && !other.transient && other.session != leader && other.session != pid)
          add(other.session);
      }
      add(tree_.nodes.at(node.parent).session);
    }
    add(root_session_);
    for (const Pid session : sessions_) add(session);
    return list;
  }

  bool search(size_t index) {
    if (++steps_ >= limits_.search_steps) return false;
    if (index == leaders_.size()) return construct();
    for (const Pid session : candidates(leaders_[index])) {
      tree_.born_session[leaders_[index]] = session;
      if (!closes_cycle(leaders_[index]) && search(index + 1)) return true;
      tree_.born_session.erase(leaders_[index]);
      if (steps_ >= limits_.search_steps) return false;
    }
    return false;
  }
  bool closes_cycle(Pid leader) const {
    Pid at = tree_.born_session.at(leader);
    while (at != root_session_) {
      if (at == leader) return true;
      const auto next = tree_.born_session.find(at);
      if (next == tree_.born_session.end()) return false;
      at = next->second;
    }
    return false;
  }

  /// Sessions from `session` up to the root's; empty past a session whose birth is unknown.
  bool is_session_ancestor(Pid above, Pid session) const {
    for (Pid at = session;; at = tree_.born_session.at(at)) {
      if (at == above) return true;
      if (at == root_session_) return false;
    }
  }

  // ---- the creation tree for fixed birth sessions

  bool construct() {
    std::map<Pid, std::vector<Pid>> blocks;  // session → those born in it
    std::map<Pid, std::set<Pid>> before;     // node → those of its block that must be its creators
    for (const auto& [pid, node] : tree_.nodes) {
      if (pid != tree_.root) blocks[born(pid)].push_back(pid);
    }
    for (const auto& [pid, node] : tree_.nodes) {
      if (pid == tree_.root || node.transient || node.parent == tree_.root) continue;
      if (!constrain(node, before)) return false;
    }
    tree_.creator.clear();
    tree_.before_setsid.clear();
    tree_.children.clear();
    for (auto& [session, members] : blocks) {
      if (!order_block(session, members, before)) return false;
    }
    for (const auto& [session, members] : blocks) {
      for (const Pid pid : members) {
        const Pid creator = tree_.creator.at(pid);
        const bool early = creator != tree_.root && tree_.is_leader(creator) && born(pid) != creator;
        (early ? tree_.before_setsid : tree_.children)[creator].push_back(pid);
      }
    }
    return true;
  }

  /// The final parent must be among the creators: within its own birth session that is an order in the block.
  bool constrain(const Node& node, std::map<Pid, std::set<Pid>>& before) {
    const Pid above = born(node.parent), session = born(node.pid);
    if (!is_session_ancestor(above, session)) {
      conflict_ = fmt::format("{} was born in session {}, which cannot descend from that of its parent {} ({})",
                              node.pid, session, node.parent, above);
      return false;
    }
    Pid child = node.pid;
    if (above != session) {
      Pid at = session;
      while (tree_.born_session.at(at) != above) at = tree_.born_session.at(at);
      child = at;  // the leader in the parent's block on the way down
    }
    if (child != node.parent) before[child].insert(node.parent);
    return true;
  }

  bool order_block(Pid session, const std::vector<Pid>& members, const std::map<Pid, std::set<Pid>>& before) {
    std::vector<Pid> order;
    std::map<Pid, int> state;  // 1 visiting, 2 done
    std::function<bool(Pid)> visit = [&](Pid pid) {
      if (state[pid] == 2) return true;
      if (state[pid] == 1) {
        conflict_ = fmt::format("{} would have to be born both before and after its own descendant in session {}", pid,
                                session);
        return false;
      }
      state[pid] = 1;
      if (const auto found = before.find(pid); found != before.end()) {
        for (const Pid earlier : found->second) {
          if (!visit(earlier)) return false;
        }
      }
      state[pid] = 2;
      order.push_back(pid);
      return true;
    };
    for (const Pid pid : members) {
      if (!visit(pid)) return false;
    }
    const Pid top = leader_of_session(session);
    if (!hang_minimal(top, order, before)) hang_as_chain(top, order);
    return true;
  }

  /// Each under the deepest of its predecessors, if those lie on one line.
  bool hang_minimal(Pid top, const std::vector<Pid>& order, const std::map<Pid, std::set<Pid>>& before) {
    std::map<Pid, std::vector<Pid>> line;  // from the top of the block down to the node, itself included
    for (const Pid pid : order) {
      std::vector<Pid> above;
      if (const auto found = before.find(pid); found != before.end()) {
        for (const Pid earlier : found->second) {
          const auto& other = line.at(earlier);
          if (other.size() > above.size()) above = other;
        }
        for (const Pid earlier : found->second) {
          if (std::ranges::find(above, earlier) == above.end()) return false;
        }
      }
      tree_.creator[pid] = above.empty() ? top : above.back();
      above.push_back(pid);
      line[pid] = std::move(above);
    }
    return true;
  }
  void hang_as_chain(Pid top, const std::vector<Pid>& order) {
    Pid previous = top;
    for (const Pid pid : order) {
      tree_.creator[pid] = previous;
      previous = pid;
    }
  }

  const model::Application& application_;
  TreeLimits limits_;
  CreationTree tree_;
  Pid root_session_;
  std::vector<Pid> leaders_;
  std::set<Pid> sessions_;
  size_t steps_ = 0;
  std::string conflict_ = "the sessions contradict each other";
};

}  // namespace

Result<CreationTree> plan_tree(const model::Application& application, const TreeLimits& limits) {
  return TreePlanner(application, limits).run();
}

}  // namespace stasis::plan
