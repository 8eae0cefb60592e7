#include "plan/tree.h"

#include <fmt/format.h>

#include <algorithm>
#include <expected>
#include <functional>
#include <optional>

#include "model/pid_namespaces.h"
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
    list_sessions();
    tree_.birth_groups = namespace_births_->birth_groups();
    const bool may_be_cloned = namespace_births_->obstacle().empty();
    if (may_be_cloned && take_over(likely)) return Verdict::restorable;
    list_demands();
    list_related();
    if (may_be_cloned &&
        (search(0) || search_anew(limits_.search_steps / 2, false) || search_anew(limits_.search_steps, true)))
      return Verdict::restorable;
    if (steps_ >= limits_.search_steps) return Verdict::undecided;
    return spaces_.any() ? decide_without_namespaces() : Result<Verdict>(Verdict::not_restorable);
  }
  CreationTree take_tree() { return std::move(tree_); }
  /// How far an undecided search came.
  std::string progress() const {
    if (steps_ < limits_.search_steps) {
      return fmt::format(
          "undecided, for only histories in which nobody enters a pid namespace by setns are searched: {}",
          namespace_births_->obstacle().empty() ? conflict_ : namespace_births_->obstacle());
    }
    return fmt::format(
        "undecided after {} steps of search over the birth sessions of {} leaders; the last contradiction was: {}",
        steps_, leaders_.size(), conflict_);
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
  Pid born(Pid pid) const { return *known(birth_of(pid)); }
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
      if (const auto foreign = foreign_children_.find(leader); foreign != foreign_children_.end())
        std::ranges::for_each(foreign->second, add);
      add(tree_.nodes.at(node.parent).session);
    }
    add(root_session_);
    for (const Pid session : any_session_ ? sessions_ : related_.at(leader)) add(session);
    return list;
  }

  /// Sessions that a leader's own has to do with: those above its members, and those below the leader. A birth in any
  /// other is hardly ever needed.
  void list_related() {
    for (const Pid leader : leaders_) related_[leader];
    for (const auto& [pid, node] : tree_.nodes) {
      if (!node.transient && node.session != node.parent && node.session != pid)
        foreign_children_[node.parent].push_back(node.session);
    }
    const auto relate = [&](Pid leader, Pid session) {
      if (const auto led = related_.find(leader); led != related_.end()) led->second.insert(session);
    };
    for (const auto& [pid, node] : tree_.nodes) {
      if (node.transient || pid == tree_.root) continue;
      // What is above a parent has been seen when its session was entered.
      const bool enters = tree_.nodes.at(node.parent).session != node.session;
      for (Pid at = node.parent;; at = tree_.nodes.at(at).parent) {
        relate(node.session, tree_.nodes.at(at).session);
        relate(at, node.session);
        if (at == tree_.root || !enters) break;
      }
    }
  }

  /// Likely choices, one after the other: right for nearly every tree, and quick. Where it loses its way the general
  /// search begins anew.
  bool search(size_t index) {
    if (++steps_ >= std::min(limits_.search_steps, quick_steps_per_leader * (leaders_.size() + 1))) return false;
    if (index == leaders_.size()) return construct();
    const Pid leader = leaders_[index];
    for (const Pid session : candidates(leader)) {
      if (!fits(leader, session)) continue;
      const Pid end = choose(leader, session);
      if (search(index + 1)) return true;
      retract(leader, end);
    }
    return false;
  }
  /// Births that are known from somewhere, if they fit.
  bool take_over(const Births& likely) {
    for (const Pid leader : leaders_) {
      const auto birth = likely.find(leader);
      const bool known = birth != likely.end() && sessions_.contains(birth->second);
      if (known) tree_.born_session[leader] = birth->second;
      if (!known || closes_cycle(leader) || !namespace_births_->allows_birth(leader, birth->second))
        return tree_.born_session.clear(), false;
    }
    return (!leaders_.empty() && construct()) || (tree_.born_session.clear(), false);
  }
  bool closes_cycle(Pid leader) const { return is_on_the_way(leader, tree_.born_session.at(leader)); }

  bool search_anew(size_t bound, bool any_session) {
    tree_.born_session.clear();
    file_demands();
    bound_ = bound, any_session_ = any_session;
    return search_widely();
  }

  // ---- what final parents demand of the birth sessions

  /// The session that a process was born in: known, or still to be chosen for a leader.
  struct Birth {
    bool chosen = false;
    Pid id;  ///< a session, or the leader
    auto operator<=>(const Birth&) const = default;
  };
  using Demand = std::pair<Birth, Birth>;  ///< the first is the second, or above it
  Birth birth_of(Pid pid) const {
    const auto& node = tree_.nodes.at(pid);
    if (pid == tree_.root || node.session != pid) return {false, node.session};
    return {true, pid};
  }
  /// Whether its final parent restricts where it can have been born: the root is above everybody.
  bool is_restricted(const Node& node) const {
    return node.pid != tree_.root && !node.transient && node.parent != tree_.root;
  }
  /// A parent is among the creators only if its birth session is that of the child, or one above it.
  void list_demands() {
    std::set<Demand> demands;
    for (const auto& [pid, node] : tree_.nodes) {
      if (!is_restricted(node)) continue;
      const Birth above = birth_of(node.parent), below = birth_of(pid);
      if (above != below && above != Birth{false, root_session_}) demands.emplace(above, below);
    }
    demands_.assign(demands.begin(), demands.end());
    file_demands();
  }
  std::optional<Pid> known(const Birth& birth) const {
    if (!birth.chosen) return birth.id;
    const auto found = tree_.born_session.find(birth.id);
    return found == tree_.born_session.end() ? std::nullopt : std::optional(found->second);
  }
  bool is_plausible(const Demand& demand) const {
    const auto above = known(demand.first), below = known(demand.second);
    return !above || !below || !leads_elsewhere(*above, *below);
  }
  /// Each under the leaders on whose births it depends: whose own it speaks of, or at whom a way up ends.
  void file_demands() {
    open_demands_.clear();
    for (const auto& demand : demands_) {
      for (const auto& birth : {demand.first, demand.second}) open_demands_[birth.id].push_back(&demand);
    }
  }
  /// Whether a birth contradicts nothing that is chosen already. Demands that do not depend on it are as they were.
  bool fits(Pid leader, Pid session) {
    if (!namespace_births_->allows_birth(leader, session)) return false;
    tree_.born_session[leader] = session;
    const bool fitting = !closes_cycle(leader) && std::ranges::all_of(open_demands_[leader], [&](const Demand* demand) {
      return is_plausible(*demand);
    });
    tree_.born_session.erase(leader);
    return fitting;
  }
  /// What depended on this birth depends on that of the leader at whom the way goes on: he is returned, for retract.
  Pid choose(Pid leader, Pid session) {
    tree_.born_session[leader] = session;
    const Pid end = climb(session, nowhere);
    const auto& moving = open_demands_[leader];
    auto& there = open_demands_[end];
    if (end != root_session_) there.insert(there.end(), moving.begin(), moving.end());
    return end;
  }
  void retract(Pid leader, Pid end) {
    auto& there = open_demands_[end];
    if (end != root_session_) there.resize(there.size() - open_demands_[leader].size());
    tree_.born_session.erase(leader);
  }
  /// From `session` up towards the root's: ends at `until`, at the root's, or at a session whose birth is not known.
  Pid climb(Pid session, Pid until) const {
    for (Pid at = session;;) {
      const auto next = tree_.born_session.find(at);
      if (at == until || at == root_session_ || next == tree_.born_session.end()) return at;
      at = next->second;
    }
  }
  bool is_on_the_way(Pid wanted, Pid session) const { return climb(session, wanted) == wanted; }
  /// `above` is not on the way from `session` up, and cannot come to be: the way is known to its end, or ends where
  /// `above` itself descends from.
  bool leads_elsewhere(Pid above, Pid session) const {
    const Pid end = climb(session, above);
    return end != above && (end == root_session_ || is_on_the_way(end, above));
  }

  /// The general search: each time the leader with the fewest sessions left is chosen for. Every choice is checked
  /// against what it leaves to the others.
  bool search_widely() {
    if (++steps_ >= bound_) return false;
    Pid next;
    std::vector<Pid> choices;
    for (const Pid leader : leaders_) {
      if (tree_.born_session.contains(leader)) continue;
      auto left = choices_left(leader);
      if (next.value != 0 && left.size() >= choices.size()) continue;
      next = leader;
      choices = std::move(left);
      if (choices.empty()) return false;
    }
    if (next.value == 0) return construct();
    for (const Pid session : choices) {
      const Pid end = choose(next, session);
      if (has_order() && search_widely()) return true;
      if (steps_ >= bound_) return false;
      retract(next, end);
    }
    return false;
  }
  using Before = std::map<Pid, std::set<Pid>>;  ///< who must be born before whom, and create him, within one session

  /// Whether an order of births is left, as far as it is known who must be born before whom.
  bool has_order() const {
    Before before;
    std::vector<Pid> followers;
    for (const auto& [pid, node] : tree_.nodes) {
      if (!is_restricted(node)) continue;
      const auto above = known(birth_of(node.parent)), below = known(birth_of(pid));
      if (above && below) note_order(node, *above, *below, before);
    }
    for (const auto& [pid, earlier] : before) followers.push_back(pid);
    return in_order(followers, before).has_value();
  }
  /// The final parent comes before the child, or before the first between them that was born in the parent's session.
  void note_order(const Node& node, Pid above, Pid session, Before& before) const {
    const auto follower = first_below(above, session, node.pid);
    if (follower && *follower != node.parent) before[*follower].insert(node.parent);
  }
  /// All after those who must be before them; or somebody who would have to be before himself.
  static std::expected<std::vector<Pid>, Pid> in_order(const std::vector<Pid>& members, const Before& before) {
    std::vector<Pid> order;
    std::map<Pid, bool> done;  // false: being visited
    std::optional<Pid> twice;
    const std::function<bool(Pid)> visit = [&](Pid pid) {
      const auto [seen, fresh] = done.try_emplace(pid, false);
      if (!fresh && !seen->second) twice = pid;
      if (!fresh) return seen->second;
      if (const auto earlier = before.find(pid); earlier != before.end()) {
        if (!std::ranges::all_of(earlier->second, visit)) return false;
      }
      order.push_back(pid);
      return done[pid] = true;
    };
    if (!std::ranges::all_of(members, visit)) return std::unexpected(*twice);
    return order;
  }
  /// Who of those born in `above` comes first on the way down to a process born in `session`: itself, or the leader of
  /// a session between. Nothing while the way is not known.
  std::optional<Pid> first_below(Pid above, Pid session, Pid pid) const {
    Pid first = pid;
    for (Pid at = session; at != above;) {
      const auto next = tree_.born_session.find(at);
      if (next == tree_.born_session.end()) return std::nullopt;
      first = at;
      at = next->second;
    }
    return first;
  }

  std::vector<Pid> choices_left(Pid leader) {
    auto left = candidates(leader);
    std::erase_if(left, [&](Pid session) { return !fits(leader, session); });
    return left;
  }

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
      if (!is_restricted(node)) continue;
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
    if (!is_on_the_way(above, session)) {
      conflict_ = fmt::format("{} was born in session {}, which cannot descend from that of its parent {} ({})",
                              node.pid, session, node.parent, above);
      return false;
    }
    note_order(node, above, session, before);
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
    const auto order = in_order(members, before);
    if (!order) {
      conflict_ = fmt::format("{} would have to be born both before and after its own descendant in session {}",
                              order.error(), block.first);
      return false;
    }
    const Pid top = top_of(block);
    if (!hang_minimal(top, *order, before)) hang_as_chain(top, *order);
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

  /// Each under the deepest of its predecessors, if those lie on one line.
  bool hang_minimal(Pid top, const std::vector<Pid>& order, const Before& before) {
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
  model::PidNamespaces spaces_;
  std::optional<NamespaceBirths> namespace_births_;
  CreationTree tree_;
  Pid root_session_;
  std::vector<Pid> leaders_;
  std::set<Pid> sessions_;
  static constexpr size_t quick_steps_per_leader = 4;
  static constexpr Pid nowhere{-1};
  std::vector<Demand> demands_;
  std::map<Pid, std::vector<const Demand*>> open_demands_;
  std::map<Pid, std::set<Pid>> related_;
  std::map<Pid, std::vector<Pid>> foreign_children_;  // of whoever has any: their sessions
  bool any_session_ = false;
  size_t steps_ = 0, bound_ = 0;
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
