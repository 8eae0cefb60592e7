#include "plan/tree_emission.h"

#include <fmt/format.h>

#include <algorithm>

namespace stasis::plan {

TreeEmission::TreeEmission(Emission& out, const CreationTree& tree, TreeHooks hooks)
    : out_(out), tree_(tree), hooks_(std::move(hooks)), taken_(tree.taken) {
  const auto first = out.options.first_transient_pid;
  next_pid_ = first != 0 && !tree.root_is_namespace_init ? first : *std::ranges::max_element(taken_) + 1;
}

Pid TreeEmission::fresh_pid() {
  while (taken_.contains(next_pid_)) ++next_pid_;
  taken_.insert(next_pid_);
  return Pid{next_pid_++};
}

Status TreeEmission::create() {
  Fork fork;
  fork.child_pid = tree_.root;
  fork.new_pid_namespace = tree_.root_is_namespace_init;
  out_.process(Pid{0}).add(fork);
  return create(tree_.root, Pid{0});
}

Status TreeEmission::create(Pid pid, Pid creator) {
  TRY(hooks_.born(pid, creator));
  const auto children_of = [&](const std::map<Pid, std::vector<Pid>>& of) {
    const auto found = of.find(pid);
    return found == of.end() ? std::vector<Pid>{} : found->second;
  };
  for (const Pid child : children_of(tree_.before_setsid)) TRY(spawn(pid, child));
  if (tree_.is_leader(pid)) out_.process(pid).add(SetSid{});
  for (const Pid child : children_of(tree_.children)) TRY(spawn(pid, child));
  return {};
}

/// What the child shares with its creator is shared at birth; with anybody else it cannot be.
Fork TreeEmission::fork_of(Pid creator, Pid child) const {
  Fork fork;
  fork.child_pid = child;
  const auto* a = out_.application.find(creator);
  const auto* b = out_.application.find(child);
  if (a == nullptr || b == nullptr || b->state == model::TaskState::zombie || a->state == model::TaskState::zombie)
    return fork;
  fork.share_files = a->descriptors == b->descriptors;
  fork.share_fs = a->fs == b->fs;
  fork.share_memory = a->address_space == b->address_space;
  fork.share_handlers = fork.share_memory && a->handlers == b->handlers;
  return fork;
}

Status TreeEmission::spawn(Pid creator, Pid child) {
  const auto& node = tree_.nodes.at(child);
  if (!node.transient && node.parent != creator) return spawn_through_relay(creator, child);
  out_.process(creator).add(fork_of(creator, child));
  return create(child, creator);
}

/// creator → relay → child; when the child's own work is done its final parent adopts it: it becomes the nearest living
/// subreaper among the relay's ancestors, and the relay ends. One such lift at a time: two subreapers on one line would
/// take each other's children.
Status TreeEmission::spawn_through_relay(Pid creator, Pid child) {
  const Pid relay = fresh_pid();
  const Pid adopter = tree_.nodes.at(child).parent;
  const bool is_reaper_anyway = adopter == tree_.root && tree_.root_is_namespace_init;
  Fork fork = fork_of(creator, child);
  fork.child_pid = relay;
  out_.process(creator).add(fork);
  fork.child_pid = child;
  out_.process(relay).add(fork);
  TRY(create(child, creator));

  const std::string lift = fmt::format("lift {}", ++lifts_);
  if (!last_lift_.empty()) out_.await_all(out_.process(adopter), last_lift_);
  if (!is_reaper_anyway) out_.process(adopter).add(SetChildReaper{true});
  out_.post(out_.process(adopter), lift + " ready");
  out_.await_all(out_.process(relay), lift + " ready");
  // The child must have done its own part: what it creates inherits nothing from its parent's identity, but its own
  // lifts need the ancestors it has now.
  out_.post(out_.process(child), lift + " grown");
  out_.await_all(out_.process(relay), lift + " grown");
  out_.process(relay).add(Exit{0});
  out_.process(creator).add(Wait{relay});
  bereaved_.insert(creator);
  out_.post(out_.process(creator), lift + " moved");
  out_.await_all(out_.process(adopter), lift + " moved");
  if (!is_reaper_anyway) out_.process(adopter).add(SetChildReaper{false});
  out_.post(out_.process(adopter), lift);
  last_lift_ = lift;
  return {};
}

void TreeEmission::groups() {
  std::map<Pid, std::vector<Pid>> members;
  const auto& root = tree_.nodes.at(tree_.root);
  for (const auto& [pid, node] : tree_.nodes) {
    const bool inherited =
        node.group == node.session || (node.group == root.group && root.group != tree_.root &&
                                       !tree_.nodes.contains(root.group) && root.session != tree_.root);
    if (!inherited) members[node.group].push_back(pid);
  }
  if (members.empty()) return;
  // All have been born, with the groups of their creators: from here on groups change.
  std::set<Pid> involved;
  for (const auto& [group_id, list] : members) {
    involved.insert(list.begin(), list.end());
    if (tree_.nodes.contains(group_id)) involved.insert(group_id);
  }
  for (const auto& [pid, node] : tree_.nodes) out_.post(out_.process(pid), "tree");
  for (const Pid pid : involved) out_.await_all(out_.process(pid), "tree");
  for (const auto& [group_id, list] : members) {
    if (tree_.nodes.contains(group_id)) {
      out_.process(group_id).add(SetPgid{group_id, group_id});
      const bool leaves = tree_.nodes.at(group_id).group != group_id;
      if (leaves) {  // a holder keeps the group alive until its members have come
        const Pid holder = fresh_pid();
        Fork fork;
        fork.child_pid = holder;
        out_.process(group_id).add(fork);
      }
      out_.post(out_.process(group_id), fmt::format("group {}", group_id));
    } else {
      Fork fork;
      fork.child_pid = group_id;
      out_.process(list.front()).add(fork);
      out_.process(group_id).add(SetPgid{group_id, group_id});
      out_.post(out_.process(group_id), fmt::format("group {}", group_id));
    }
  }
  for (const auto& [group_id, list] : members) group(group_id, list);
}

/// Everybody joins; then whoever held the group's number for them ends.
void TreeEmission::group(Pid group_id, const std::vector<Pid>& members) {
  const std::string event = fmt::format("group {}", group_id), joined = fmt::format("joined {}", group_id);
  for (const Pid pid : members) {
    if (pid == group_id) continue;
    out_.await_all(out_.process(pid), event);
    out_.process(pid).add(SetPgid{pid, group_id});
    out_.post(out_.process(pid), joined);
  }
  Pid helper, parent;
  if (!tree_.nodes.contains(group_id)) {
    helper = group_id;
    parent = members.front();
  } else if (tree_.nodes.at(group_id).group != group_id) {
    parent = group_id;
    for (const auto& command : out_.program.commands) {  // the holder is the leader's last child
      const auto* fork = std::get_if<Fork>(&command.action);
      if (fork != nullptr && command.pid == group_id && !tree_.nodes.contains(fork->child_pid))
        helper = fork->child_pid;
    }
  } else {
    return;
  }
  out_.await_all(out_.process(helper), joined);
  out_.process(helper).add(Exit{0});
  out_.process(parent).add(Wait{helper});
  bereaved_.insert(parent);
}

void TreeEmission::end_dead_leaders(Pid pid) {
  for (const auto* of : {&tree_.before_setsid, &tree_.children}) {
    const auto found = of->find(pid);
    if (found == of->end()) continue;
    for (const Pid child : found->second) end_dead_leaders(child);
  }
  if (!tree_.nodes.at(pid).transient) return;
  out_.await_all(out_.process(pid), "grouped");
  out_.process(pid).add(Exit{0});
  const Pid creator = tree_.creator.at(pid);
  out_.process(creator).add(Wait{pid});
  bereaved_.insert(creator);
}

void TreeEmission::finish() {
  const bool anybody_ends =
      std::ranges::any_of(tree_.nodes, [](const auto& entry) { return entry.second.transient || entry.second.zombie; });
  if (!anybody_ends) return;
  // Numbers of dead leaders must stay taken, and groups alive, until everybody is where he belongs.
  for (const auto& [pid, node] : tree_.nodes) out_.post(out_.process(pid), "grouped");
  end_dead_leaders(tree_.root);
  for (const auto& [pid, node] : tree_.nodes) {
    if (!node.zombie) continue;
    out_.await_all(out_.process(pid), "grouped");
    out_.process(pid).add(Exit{node.exit_status});
    bereaved_.insert(node.parent);
  }
}

}  // namespace stasis::plan
