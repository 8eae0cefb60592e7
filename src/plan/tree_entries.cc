// Who comes into a pid namespace from outside, and the groups from outside that he is born in.
#include <fmt/format.h>

#include <ranges>

#include "plan/tree_emission.h"

namespace stasis::plan {
namespace {

std::string founded_early(Pid group) { return fmt::format("early group {}", group); }

Clone as_clone(const Clone& clone) { return clone; }

}  // namespace

Clone as_clone(const Fork& fork) {
  return {fork.child_pid, fork.nested_pids,    fork.new_pid_namespace, fork.share_files,
          fork.share_fs,  fork.share_handlers, fork.share_memory};
}

/// The child is born when all others are. A porter is forked already: later it would not have, from its creator, the
/// session and the group that the child is to be born in. If the creator comes into that group later, there is none
/// yet.
Status TreeEmission::await_entry(Pid creator, Pid child) {
  TRY(giver_of(creator, child, {}));
  const auto group = tree_.birth_groups.find(child);
  if (tree_.siblings.contains(child) && group == tree_.birth_groups.end()) return {};  // its elder stays where it is
  if (group != tree_.birth_groups.end()) {
    if (!knows(creator, group->second) && groups_of_moved_.at(creator) != group->second) return {};
    stand_in(creator, group->second);
  }
  entries_[child] = {porter_of(creator, child), birth_of<Fork>(creator, child)};
  return {};
}

Pid TreeEmission::porter_of(Pid creator, Pid child) {
  const Pid space = out_.spaces.of(creator);
  out_.take_table(creator);
  const auto create = [&](auto birth) {
    out_.process(creator).add(birth);
    return birth.child_pid;
  };
  if (tree_.siblings.contains(child)) return create(transient_like(birth_of<Clone>(creator, child), space));
  return create(transient_like(birth_of<Fork>(creator, child), space));
}

template <typename Birth>
Birth TreeEmission::transient_like(Birth birth, Pid space) {
  Fork passing = out_.transient_in(space);
  birth.child_pid = passing.child_pid, birth.nested_pids = std::move(passing.nested_pids);
  birth.new_pid_namespace = false;
  return birth;
}
template Fork TreeEmission::transient_like(Fork, Pid);

template <typename Birth>
Pid TreeEmission::create_in_its_space(Pid runner, Pid runners_space, const Birth& birth) {
  const Pid space = out_.spaces.born_in(birth.child_pid);
  if (space != runners_space) enter_space(runner, space);
  if (space == runners_space || !birth.new_pid_namespace) return out_.process(runner).add(birth), Pid{};
  const Birth founder = transient_like(birth, space);
  out_.process(runner).add(founder);
  out_.process(founder.child_pid).add(as_clone(birth));
  return founder.child_pid;
}
template Pid TreeEmission::create_in_its_space(Pid, Pid, const Clone&);

/// creator → porter → child, or porter → relay → child where the child's parent is the init of a namespace that the
/// creator is not in: the relay, who lives there, leaves it an orphan. Siblings have siblings for porters.
Status TreeEmission::enter(std::vector<Growing>& line, Pid child) {
  const Pid creator = tree_.creator.at(child);
  const bool is_sibling = tree_.siblings.contains(child);
  if (entries_.at(child).porter.value == 0) {
    if (is_sibling) return spawn_sibling(line, creator, child);
    put_creator(creator, child);
    entries_[child] = {porter_of(creator, child), birth_of<Fork>(creator, child)};
  }
  const auto [porter, birth] = entries_.at(child);
  // What the porter opens for a moment is in the table that the child is to share: nobody else uses it now.
  const auto turn = fmt::format("turn of {}", porter), over = fmt::format("turn of {} is over", porter);
  if (birth.share_files) {
    out_.take_table(creator);
    out_.post(out_.process(creator), turn);
    out_.await_all(out_.process(porter), turn);
  }
  join_early(porter, creator, child);
  Pid founder, giver = porter;
  if (is_sibling)
    founder = create_in_its_space(porter, out_.spaces.of(creator), as_clone(birth));
  else
    giver = fork_inside(porter, birth);
  if (birth.share_files) {
    out_.post(out_.process(giver), over);
    out_.await_all(out_.process(creator), over);
  }
  if (!is_sibling) return begin(line, {child, creator, {creator, creator}, giver, giver == porter ? creator : porter});
  if (founder.value != 0) end_sibling(founder, creator);
  end_sibling(porter, creator);
  return begin_sibling(line, creator, child);
}

/// The group that the child is to be born in.
void TreeEmission::join_early(Pid porter, Pid creator, Pid child) {
  const auto group = tree_.birth_groups.find(child);
  if (group == tree_.birth_groups.end() || !knows(creator, group->second)) return;
  found_early(group->second);
  out_.await_all(out_.process(porter), founded_early(group->second));
  out_.process(porter).add(SetPgid{porter, group->second});
}

/// Who has created it is returned.
Pid TreeEmission::fork_inside(Pid porter, const Fork& born) {
  const auto& spaces = out_.spaces;
  const Pid creators = spaces.of(tree_.creator.at(born.child_pid));
  const auto& node = tree_.nodes.at(born.child_pid);
  const Pid parents = node.has_parent() ? spaces.of(node.parent) : creators;
  Pid relay = porter;
  if (creators != parents) {
    enter_space(porter, parents);
    const Fork fork = transient_like(born, parents);
    relay = fork.child_pid;
    out_.process(porter).add(fork);
  }
  const Pid founder = create_in_its_space(relay, parents, born);
  if (founder.value == 0) return relay;
  out_.process(founder).add(Exit{0});
  out_.process(relay).add(Wait{founder});
  return relay;
}

/// Whoever is the elder's parent as yet waits for it.
void TreeEmission::end_sibling(Pid porter, Pid elder) {
  const auto relay = relays_.find(elder);
  const Pid parent = relay == relays_.end() ? tree_.nodes.at(elder).parent : relay->second;
  const auto done = fmt::format("porter {} is done", porter);
  out_.post(out_.process(porter), done);
  out_.await_all(out_.process(parent), done);
  out_.process(porter).add(Exit{0});
  out_.process(parent).add(Wait{porter});
  out_.bereaved.insert(parent);
}

/// By its parent as yet, in the same session: that has not been the one to stay with since birth (TreeEmission::spawn).
void TreeEmission::put_into(Pid pid, Pid group) {
  auto& now = groups_of_moved_.at(pid);
  if (now == group) return;
  now = group;
  found_early(group);
  const Pid parent = relays_.at(pid);
  const auto ready = fmt::format("{} can be put into group {}, {}", pid, group, ++puts_), done = ready + ", and is";
  auto one = out_.process(pid), other = out_.process(parent);
  out_.await_all(other, founded_early(group));
  out_.post(one, ready);
  out_.await_all(other, ready);
  other.add(SetPgid{pid, group});
  out_.post(other, done);
  out_.await_all(one, done);
}

/// The child has its group from him alone.
void TreeEmission::put_creator(Pid creator, Pid child) {
  const auto group = tree_.birth_groups.find(child);
  if (group != tree_.birth_groups.end() && !knows(creator, group->second)) put_into(creator, group->second);
}

/// All are born. Who leads a group that others are in leaves it to one of them who stays there.
Status TreeEmission::settle() {
  const auto order = birth_order(tree_);
  for (const Pid pid : std::views::reverse(order)) {
    const auto grown = pending_.find(pid);
    if (grown == pending_.end()) continue;
    if (tree_.moved.contains(pid)) {
      const Pid group = tree_.nodes.at(pid).group;
      if (!knows(pid, group) && led_.contains(pid)) found_early(pid);
      if (!knows(pid, group)) put_into(pid, group);
      TRY(unshare(pid, true, true));
    }
    if (grown->second.relay.value != 0) lift(grown->second);
  }
  return {};
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
  if (const auto moved = groups_of_moved_.find(group); moved != groups_of_moved_.end()) moved->second = group;
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
