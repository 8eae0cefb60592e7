#include "plan/tree_emission.h"

#include <fmt/format.h>

#include <algorithm>
#include <ranges>
#include <utility>

namespace stasis::plan {
TreeEmission::TreeEmission(Emission& out, const CreationTree& tree, TreeHooks hooks)
    : out_(out), tree_(tree), hooks_(std::move(hooks)) {
  out.reserve_numbers(tree.taken, tree.root_is_namespace_init ? 0 : out.options.first_transient_pid);
  for (const auto& [terminal, about] : out.application.terminals) {
    if (about.session.value != 0) terminals_[about.session] = terminal;
  }
  for (const auto& [pid, node] : tree.nodes) {
    if (node.group != pid) led_.insert(node.group);
  }
  for (const auto& [pid, group] : tree.birth_groups) entered_.insert(out.spaces.of(group));
  for (const Pid pid : tree.deferred) {
    entries_[pid] = {};
    entered_.insert({out.spaces.of(tree.nodes.at(pid).parent), out.spaces.born_in(pid)});
  }
  const auto note_above = [&](Pid pid) {
    while (pid != tree.root && above_deferred_.insert(tree.creator.at(pid)).second) pid = tree.creator.at(pid);
  };
  std::ranges::for_each(tree.deferred, note_above);
  for (const auto& [pid, moves] : tree.moved) {
    note_above(pid);
    for (const Pid group : moves.groups) entered_.insert(out.spaces.of(group));
  }
  for (const auto* of : {&tree.before_setsid, &tree.children}) {
    for (const auto& [creator, children] : *of) find_families(creator, children);
  }
}

/// Without recursion: trees can be deep.
Status TreeEmission::create() {
  Fork fork;
  fork.child_pid = tree_.root;
  fork.new_pid_namespace = tree_.root_is_namespace_init;
  out_.process(Pid{0}).add(fork);
  std::vector<Growing> line;
  TRY(begin(line, {.pid = tree_.root}));
  TRY(grow(line));
  for (const Pid pid : tree_.deferred) {
    TRY(enter(line, pid));
    TRY(grow(line));
  }
  return settle();
}

Status TreeEmission::grow(std::vector<Growing>& line) {
  while (!line.empty()) {
    auto& last = line.back();
    if (last.next < last.children->size()) {
      TRY(spawn(line, (*last.children)[last.next++]));
    } else if (!last.is_past_setsid) {
      lead(last);
    } else {
      const Growing grown = std::move(last);
      line.pop_back();
      const bool is_moved = tree_.moved.contains(grown.pid);
      if (!is_moved) TRY(unshare(grown.pid, true, true));
      if (is_moved || (grown.relay.value != 0 && above_deferred_.contains(grown.pid)))
        pending_.emplace(grown.pid, grown);
      else if (grown.relay.value != 0)
        lift(grown);
    }
  }
  return {};
}

const std::vector<Pid>& TreeEmission::listed(const std::map<Pid, std::vector<Pid>>& children_of, Pid pid) {
  static const std::vector<Pid> nobody;
  const auto found = children_of.find(pid);
  return found == children_of.end() ? nobody : found->second;
}

Status TreeEmission::begin(std::vector<Growing>& line, Growing born) {
  const Pid pid = born.pid;
  out_.take_table(pid);
  TRY(hooks_.born(pid, born.origin));
  note_objects(pid);
  if (entered_.contains(pid)) out_.post(out_.process(pid), began(pid));
  if (born.relay.value != 0) relays_[pid] = born.relay;
  if (const auto moved = tree_.moved.find(pid); moved != tree_.moved.end())
    groups_of_moved_[pid] = moved->second.born_in;
  born.children = &listed(tree_.before_setsid, pid);
  line.push_back(std::move(born));
  return {};
}

/// Who has created those that are born in the session that he was born in himself.
void TreeEmission::lead(Growing& leader) {
  const Pid pid = leader.pid;
  if (tree_.is_leader(pid)) out_.process(pid).add(SetSid{});
  // Whoever is born in the session from here on has the terminal, too (kernel/fork.c, copy_process).
  if (const auto terminal = terminals_.find(pid); terminal != terminals_.end())
    out_.process(pid).add(SetControllingTerminal{out_.terminal_fd(terminal->second)});
  leader.is_past_setsid = true;
  leader.children = &listed(tree_.children, pid), leader.next = 0;
  leader.born.clear();
}

Status TreeEmission::spawn(std::vector<Growing>& line, Pid listed) {
  auto& parent = line.back();
  const Pid child = next_born(listed);
  const Pid creator = parent.pid;
  const auto& node = tree_.nodes.at(child);
  TRY(unshare_for(creator, child));
  if (!parent.is_past_setsid) put_creator(creator, child);
  if (const auto moved = tree_.moved.find(child); moved != tree_.moved.end()) {
    for (const Pid group : moved->second.groups) stand_in(creator, group);
  }
  if (entries_.contains(child)) return await_entry(creator, child);
  if (family_of_.contains(child)) return spawn_from_holder(line, child);
  if (tree_.siblings.contains(child)) {
    TRY(giver_of(creator, child, {}));
    return spawn_sibling(line, creator, child);
  }
  const bool moves = node.has_parent() && (node.parent != creator || tree_.moved.contains(child));
  const Pid giver = TRY(giver_of(creator, child, moves ? std::vector<Pid>{} : parent.born));
  if (moves) {
    const Pid relay = fork_through_relay(creator, birth_of<Fork>(creator, child));
    return begin(line, {child, creator, {creator, creator}, relay, creator});
  }
  out_.take_table(giver);
  if (giver == creator)
    out_.add_by(creator, thread_for(creator, child), birth_of<Fork>(creator, child));
  else
    out_.process(giver).add(birth_of<Clone>(giver, child));
  parent.born.push_back(child);
  return begin(line, {child, creator, {giver, giver}});
}

/// By the leader of the session that it is born in, or another sibling. Whoever adopts that one adopts it, too.
Status TreeEmission::spawn_sibling(std::vector<Growing>& line, Pid elder, Pid child) {
  out_.take_table(elder);
  const Pid own = out_.spaces.of(elder);
  const Pid founder = create_in_its_space(elder, own, birth_of<Clone>(elder, child));
  // And back: the elder has children of its own.
  if (out_.spaces.born_in(child) != own) out_.process(elder).add(EnterPidNamespace{elder});
  if (founder.value != 0) end_sibling(founder, elder);
  return begin_sibling(line, elder, child);
}

/// A relay that is the elder's parent is the child's, too.
Status TreeEmission::begin_sibling(std::vector<Growing>& line, Pid elder, Pid child) {
  note_parent_thread(child);
  if (const auto relay = relays_.find(elder); relay != relays_.end()) {
    siblings_at_[relay->second].push_back(child);
    relays_[child] = relay->second;
  }
  return begin(line, {child, elder, {elder, elder}});
}

Tid TreeEmission::thread_for(Pid creator, Pid child) const {
  const auto* task = out_.tasks.find(child);
  return task != nullptr && task->parent == creator ? out_.parent_thread(*task) : leader_of(creator);
}

/// Whoever is adopted is the child of his parent's first thread.
void TreeEmission::note_parent_thread(Pid child) {
  const auto* task = out_.tasks.find(child);
  if (task != nullptr && depends_on_parent_thread(out_.tasks, *task)) out_.passed_on[task->parent].insert(child);
}

/// Of those whose parent ends in its pid namespace, without having to be a subreaper.
bool TreeEmission::adopts_anyway(Pid pid) const {
  const Pid space = out_.spaces.of(pid);
  return space.value != 0 ? pid == space : pid == tree_.root && tree_.root_is_namespace_init;
}

/// giver → relay → child. The relay's pid is returned.
Pid TreeEmission::fork_through_relay(Pid giver, const Fork& born) {
  const Fork relay = transient_like(born, out_.spaces.of(tree_.creator.at(born.child_pid)));
  out_.take_table(giver);
  out_.process(giver).add(relay);
  out_.process(relay.child_pid).add(born);
  return relay.child_pid;
}

/// When the child's own work is done its final parent adopts it: it becomes the nearest living subreaper among the
/// relay's ancestors, and the relay ends. One such lift at a time: two subreapers on one line would take each other's
/// children.
void TreeEmission::lift(const Growing& grown) {
  const Pid child = grown.pid, relay = grown.relay, creator = grown.creator;
  const Pid adopter = tree_.nodes.at(child).parent;
  note_parent_thread(child);
  const bool is_reaper_anyway = adopts_anyway(adopter);
  const auto lift = fmt::format("lift {}", ++lifts_);
  if (!last_lift_.empty()) out_.await_all(out_.process(adopter), last_lift_);
  if (!is_reaper_anyway) out_.process(adopter).add(SetChildReaper{true});
  out_.post(out_.process(adopter), lift + " ready");
  out_.await_all(out_.process(relay), lift + " ready");
  // The child must have done its own part: what it creates inherits nothing from its parent's identity, but its own
  // lifts need the ancestors it has now.
  out_.post(out_.process(child), lift + " grown");
  if (const auto siblings = siblings_at_.extract(relay); !siblings.empty()) {
    for (const Pid sibling : siblings.mapped()) {
      out_.post(out_.process(sibling), lift + " grown");
      relays_.erase(sibling);
    }
  }
  out_.await_all(out_.process(relay), lift + " grown");
  out_.process(relay).add(Exit{0});
  out_.process(grown.relay_of).add(Wait{relay});
  const auto done = done_with(grown);
  for (const Pid pid : done) {
    out_.leave_table(pid);
    out_.process(pid).add(Exit{0});
    out_.process(creator).add(Wait{pid});
  }
  out_.bereaved.insert(creator);
  out_.post(out_.process(done.empty() ? grown.relay_of : creator), lift + " moved");
  out_.await_all(out_.process(adopter), lift + " moved");
  relays_.erase(child);
  if (!is_reaper_anyway) out_.process(adopter).add(SetChildReaper{false});
  out_.post(out_.process(adopter), lift);
  last_lift_ = lift;
}

void TreeEmission::groups() { emit_groups(out_, tree_, held_groups_); }

void TreeEmission::terminals() {
  for (const auto& [session, terminal] : terminals_) set_foreground(terminal, out_.application.terminals.at(terminal));
  // Everybody else has it from birth. Those of his children who are to have it have been born.
  for (const auto& task : out_.application.tasks) {
    const auto terminal = terminals_.find(task.session);
    if (terminal == terminals_.end() || task.state == model::TaskState::zombie || task.controlling_terminal != 0)
      continue;
    out_.process(task.pid).add(LeaveTerminal{out_.terminal_fd(terminal->second)});
  }
}

/// By the leader, whose own group it has been until now: so it is not stopped for it (drivers/tty/tty_jobctrl.c,
/// tty_check_change).
void TreeEmission::set_foreground(uint64_t terminal, const model::Terminal& about) {
  if (about.foreground == about.session) return;
  auto leader = out_.process(about.session);
  const int fd = out_.terminal_fd(terminal);
  if (about.foreground.value != 0) {
    const auto member = std::ranges::find_if(tree_.nodes, [&](const auto& entry) {
      return entry.second.group == about.foreground && entry.second.session == about.session;
    });
    const auto stands = fmt::format("group {} stands", about.foreground);
    out_.post(out_.process(member->first), stands);
    out_.await_all(leader, stands);
    return leader.add(SetForegroundGroup{fd, about.foreground});
  }
  // A group that nobody is in any more.
  const Fork passing = out_.transient(about.session);
  auto member = out_.process(passing.child_pid);
  out_.take_table(about.session);
  leader.add(passing);
  member.add(SetPgid{passing.child_pid, passing.child_pid});
  out_.post(member, fmt::format("group {} stands", passing.child_pid));
  out_.await_all(leader, fmt::format("group {} stands", passing.child_pid));
  leader.add(SetForegroundGroup{fd, passing.child_pid});
  out_.post(leader, fmt::format("foreground of {}", terminal));
  out_.await_all(member, fmt::format("foreground of {}", terminal));
  member.add(Exit{0});
  leader.add(Wait{passing.child_pid});
  out_.bereaved.insert(about.session);
}

/// Those that another has created first.
void TreeEmission::end_dead_leaders() {
  const auto order = birth_order(tree_);
  for (const Pid pid : std::views::reverse(order)) {
    if (!tree_.nodes.at(pid).transient) continue;
    out_.await_all(out_.process(pid), "grouped");
    out_.process(pid).add(Exit{0});
    const auto& node = tree_.nodes.at(pid);
    const Pid parent = node.has_parent() ? node.parent : tree_.creator.at(pid);
    out_.process(parent).add(Wait{pid});
    out_.bereaved.insert(parent);
  }
}

void TreeEmission::finish() {
  const bool anybody_ends =
      std::ranges::any_of(tree_.nodes, [](const auto& entry) { return entry.second.transient || entry.second.zombie; });
  if (!anybody_ends) return;
  // Numbers of dead leaders must stay taken, and groups alive, until everybody is where he belongs.
  for (const auto& [pid, node] : tree_.nodes) out_.post(out_.process(pid), "grouped");
  end_dead_leaders();
  for (const auto& [pid, node] : tree_.nodes) {
    if (!node.zombie) continue;
    out_.await_all(out_.process(pid), "grouped");
    out_.process(pid).add(Exit{node.exit_status});
    out_.bereaved.insert(node.parent);
  }
}

}  // namespace stasis::plan
