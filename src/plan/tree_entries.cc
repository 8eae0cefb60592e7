// Who comes into a pid namespace from outside, and the groups from outside that he is born in.
#include <fmt/format.h>

#include "plan/tree_emission.h"

namespace stasis::plan {
namespace {

std::string founded_early(Pid group) { return fmt::format("early group {}", group); }

}  // namespace

/// The child is born when all others are. A porter is forked already: later it would not have, from its creator, the
/// session and the group that the child is to be born in.
Status TreeEmission::await_entry(Pid creator, Pid child) {
  TRY(giver_of(creator, child, {}));
  if (tree_.siblings.contains(child)) return {};  // the leader of its session stays where it is
  const auto group = tree_.birth_groups.find(child);
  if (group != tree_.birth_groups.end()) stand_in(creator, group->second);
  const Fork passing = out_.transient(creator);
  Fork fork = birth_of<Fork>(creator, child);
  fork.child_pid = passing.child_pid, fork.nested_pids = passing.nested_pids;
  out_.take_table(creator);
  out_.process(creator).add(fork);
  entries_[child] = {creator, passing.child_pid, fork_of(creator, child)};
  return {};
}

/// creator → porter → child, or porter → relay → child where the child's parent is the init of a namespace that the
/// creator is not in: the relay, who lives there, leaves it an orphan.
Status TreeEmission::enter(std::vector<Growing>& line, Pid child) {
  if (tree_.siblings.contains(child)) return spawn_sibling(line, tree_.creator.at(child), child);
  const auto& [creator, porter, birth] = entries_.at(child);
  const auto& spaces = out_.spaces;
  const Pid parents = spaces.of(tree_.nodes.at(child).parent), own = spaces.born_in(child);
  const Fork& born = birth;
  // What the porter opens for a moment is in the table that the child is to share: nobody else uses it now.
  const auto turn = fmt::format("turn of {}", porter), over = fmt::format("turn of {} is over", porter);
  if (born.share_files) {
    out_.take_table(creator);
    out_.post(out_.process(creator), turn);
    out_.await_all(out_.process(porter), turn);
  }
  if (const auto group = tree_.birth_groups.find(child); group != tree_.birth_groups.end()) {
    found_early(group->second);
    out_.await_all(out_.process(porter), founded_early(group->second));
    out_.process(porter).add(SetPgid{porter, group->second});
  }
  Pid relay = porter;
  if (spaces.of(creator) != parents) {
    enter_space(porter, parents);
    const Fork passing = out_.transient_in(parents);
    Fork fork = born;
    fork.child_pid = relay = passing.child_pid, fork.nested_pids = passing.nested_pids, fork.new_pid_namespace = false;
    out_.process(porter).add(fork);
  }
  if (own != parents) enter_space(relay, own);
  out_.process(relay).add(born);
  if (born.share_files) {
    out_.post(out_.process(relay), over);
    out_.await_all(out_.process(creator), over);
  }
  return begin(line, {child, creator, {creator, creator}, relay, relay == porter ? creator : porter});
}

void TreeEmission::enter_space(Pid runner, Pid space) {
  out_.await_all(out_.process(runner), began(space));
  out_.process(runner).add(EnterPidNamespace{space});
}

/// Somebody stands in for the dead leader of a group that a child is to be born in. Where that was led from inside of a
/// pid namespace, he is the child of one who enters it when it is there.
void TreeEmission::stand_in(Pid creator, Pid group) {
  if (tree_.nodes.contains(group) || held_groups_.contains(group)) return;
  out_.bereaved.insert(creator);
  out_.take_table(creator);
  if (out_.spaces.of(group) == out_.spaces.of(creator)) {
    held_groups_[group] = {group, creator};
    return found_by(creator, group);
  }
  const Fork porter = out_.transient(creator);
  out_.process(creator).add(porter);
  held_groups_[group] = {group, porter.child_pid, creator};
}

void TreeEmission::found_by(Pid parent, Pid group) {
  Fork leader;
  leader.child_pid = group;
  leader.nested_pids = out_.spaces.nested(group.value);
  founded_early_.insert(group);
  out_.process(parent).add(leader);
  out_.process(group).add(SetPgid{group, group});
  out_.post(out_.process(group), founded_early(group));
}

/// Its leader has created all that it creates, but for porters. Where it belongs to another group itself, somebody
/// stays in this one.
void TreeEmission::found_early(Pid group) {
  const auto leader = tree_.nodes.find(group);
  if (leader == tree_.nodes.end()) {
    if (founded_early_.contains(group)) return;
    const Pid porter = held_groups_.at(group).parent;
    enter_space(porter, out_.spaces.of(group));
    return found_by(porter, group);
  }
  if (leader->second.session == group || !founded_early_.insert(group).second) return;
  out_.process(group).add(SetPgid{group, group});
  if (leader->second.group != group) {
    const Fork holder = out_.transient(group);
    out_.take_table(group);
    out_.process(group).add(holder);
    held_groups_[group] = {holder.child_pid, group};
    out_.bereaved.insert(group);
  }
  out_.post(out_.process(group), founded_early(group));
}

}  // namespace stasis::plan
