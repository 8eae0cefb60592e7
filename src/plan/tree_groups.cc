#include "plan/tree_groups.h"

#include <fmt/format.h>

#include <algorithm>

namespace stasis::plan {
namespace {

class Groups {
 public:
  Groups(Emission& out, const CreationTree& tree, const HeldGroups& held) : out_(out), tree_(tree), held_(held) {}

  void run() {
    for (const auto& [pid, node] : tree_.nodes) {
      if (!is_inherited(node)) groups_[node.group].members.push_back(pid);
    }
    if (groups_.empty()) return;
    wait_for_the_tree();
    for (auto& [id, group] : groups_) found(id, group);
    for (auto& [id, group] : groups_) join(id, group);
    move_leaders();
    for (auto& [id, group] : groups_) end_helper(id, group);
  }

 private:
  struct Group {
    std::vector<Pid> members;
    bool is_left = false;     ///< by its leader
    bool is_safe = false;     ///< somebody is in it who stays until all have come
    Held helper;              ///< a process that holds its number
    std::vector<Pid> movers;  ///< leaders of other groups that have come
  };

  /// Of the session, or from outside of the tree: everybody is born into it.
  bool is_inherited(const Node& node) const {
    const auto& root = tree_.nodes.at(tree_.root);
    const bool outside = root.session != tree_.root && root.group != tree_.root && !tree_.nodes.contains(root.group);
    return node.group == node.session || (outside && node.group == root.group);
  }
  bool leads(Pid pid) const { return groups_.contains(pid); }
  bool leaves(Pid pid) const { return leads(pid) && tree_.nodes.at(pid).group != pid; }

  static std::string founded(Pid group) { return fmt::format("group {}", group); }
  static std::string joined(Pid group) { return fmt::format("joined {}", group); }
  static std::string moved(Pid leader) { return fmt::format("moved {}", leader); }

  /// All have been born, with the groups of their creators: from here on groups change.
  void wait_for_the_tree() {
    std::set<Pid> involved;
    for (const auto& [id, group] : groups_) {
      involved.insert(group.members.begin(), group.members.end());
      if (tree_.nodes.contains(id)) involved.insert(id);
    }
    for (const auto& [id, held] : held_) involved.insert(held.parent);
    for (const auto& [pid, node] : tree_.nodes) out_.post(out_.process(pid), "tree");
    for (const Pid pid : involved) out_.await_all(out_.process(pid), "tree");
  }

  void fork(Pid parent, const Fork& helper) {
    out_.take_table(parent);
    out_.process(parent).add(helper);
    out_.bereaved.insert(parent);
  }
  /// Processes in nested pid namespaces cannot name a leader outside: they have the group from birth.
  bool is_born_into(Pid pid, Pid group) const {
    return !out_.spaces.contains(out_.spaces.of(pid), out_.spaces.of(group));
  }

  /// It has been put where it cannot go by itself, and somebody else stays in its group.
  bool has_left(Pid id) const {
    return tree_.nodes.contains(id) && leaves(id) && is_born_into(id, tree_.nodes.at(id).group);
  }

  void found(Pid id, Group& group) {
    const auto held = held_.find(id);
    if (held != held_.end()) {
      group.helper = held->second;
    } else if (!tree_.nodes.contains(id)) {
      Fork leader;
      leader.child_pid = id;
      leader.nested_pids = out_.spaces.nested(id.value);
      // Only in its own namespace can it be born, and one of its members lives there.
      const auto inside = [&](Pid member) { return out_.spaces.of(member) == out_.spaces.of(id); };
      group.helper = {id, *std::ranges::find_if(group.members, inside)};
      fork(group.helper.parent, leader);
    }
    group.is_safe = group.helper.holder.value != 0 || !leaves(id);
    const bool is_founded = held != held_.end() && !tree_.nodes.contains(id);
    if (!is_founded && !has_left(id)) out_.process(id).add(SetPgid{id, id});
    out_.post(out_.process(id), founded(id));
  }

  /// Those who lead nothing themselves: they stay.
  void join(Pid id, Group& group) {
    for (const Pid pid : group.members) {
      if (leads(pid) || is_born_into(pid, id)) continue;
      out_.await_all(out_.process(pid), founded(id));
      out_.process(pid).add(SetPgid{pid, id});
      out_.post(out_.process(pid), joined(id));
      group.is_safe = true;
    }
  }

  void move_leaders() {
    std::set<Pid> left;
    for (const auto& [id, group] : groups_) {
      if (tree_.nodes.contains(id) && leaves(id) && !has_left(id)) left.insert(id);
    }
    while (!left.empty()) {
      auto next = std::ranges::find_if(left, [&](Pid pid) { return groups_.at(pid).is_safe; });
      if (next == left.end()) {  // only circles are left: each leader waits for another's coming
        next = left.begin();
        auto& group = groups_.at(*next);
        const Fork holder = out_.transient(*next);
        group.helper = {holder.child_pid, *next};
        fork(*next, holder);
        group.is_safe = true;
      }
      move(*next);
      left.erase(next);
    }
  }

  void await_members(Pid waiter, Pid id) {
    out_.await_all(out_.process(waiter), joined(id));
    for (const Pid mover : groups_.at(id).movers) out_.await_all(out_.process(waiter), moved(mover));
  }

  void move(Pid pid) {
    const Pid to = tree_.nodes.at(pid).group;
    await_members(pid, pid);
    const auto target = groups_.find(to);
    if (target != groups_.end()) {
      // Its founder is there, or has left it to others.
      if (target->second.is_left)
        await_members(pid, to);
      else
        out_.await_all(out_.process(pid), founded(to));
      target->second.movers.push_back(pid);
      target->second.is_safe = true;
    }
    groups_.at(pid).is_left = true;
    out_.process(pid).add(SetPgid{pid, to});
    out_.post(out_.process(pid), moved(pid));
  }

  void end_helper(Pid id, const Group& group) {
    const auto& [holder, parent, grandparent] = group.helper;
    if (holder.value == 0) return;
    await_members(holder, id);
    out_.process(holder).add(Exit{0});
    out_.process(parent).add(Wait{holder});
    if (grandparent.value == 0) return;
    out_.process(parent).add(Exit{0});
    out_.process(grandparent).add(Wait{parent});
  }

  Emission& out_;
  const CreationTree& tree_;
  const HeldGroups& held_;
  std::map<Pid, Group> groups_;
};

}  // namespace

void emit_groups(Emission& out, const CreationTree& tree, const HeldGroups& held) { Groups(out, tree, held).run(); }

}  // namespace stasis::plan
