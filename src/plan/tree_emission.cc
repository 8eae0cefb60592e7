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
}

/// Without recursion: trees can be deep.
Status TreeEmission::create() {
  Fork fork;
  fork.child_pid = tree_.root;
  fork.new_pid_namespace = tree_.root_is_namespace_init;
  out_.process(Pid{0}).add(fork);
  std::vector<Growing> line;
  TRY(begin(line, {.pid = tree_.root}));
  while (!line.empty()) {
    auto& last = line.back();
    if (last.next < last.children->size()) {
      TRY(spawn(line, (*last.children)[last.next++]));
    } else if (!last.is_past_setsid) {
      lead(last);
    } else {
      const Growing grown = std::move(last);
      line.pop_back();
      if (grown.relay.value != 0) lift(grown);
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
  TRY(hooks_.born(pid, born.copy_of));
  note_objects(pid);
  if (std::ranges::any_of(tree_.birth_groups, [&](const auto& birth) { return birth.second == pid; })) hold_group(pid);
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

namespace {

/// What tasks can have in common with CLONE_FILES, CLONE_FS, CLONE_VM and CLONE_SIGHAND.
constexpr std::pair<ObjectId model::Task::*, const char*> shareable[] = {
    {&model::Task::descriptors, "descriptor table"},
    {&model::Task::fs, "working directory"},
    {&model::Task::address_space, "memory"},
    {&model::Task::handlers, "signal handlers"},
};

bool shares(const model::Task* a, const model::Task* b, ObjectId model::Task::* object) {
  return a != nullptr && b != nullptr && (a->*object).value != 0 && a->*object == b->*object;
}

/// A FORK or CLONE by the giver: they have at birth in common what they have in the end.
template <typename Birth>
Birth birth_of(const Emission& out, Pid giver, Pid child) {
  const auto *a = out.tasks.find(giver), *b = out.tasks.find(child);
  Birth birth;
  birth.child_pid = child;
  birth.nested_pids = out.spaces.nested(child.value);
  birth.share_files = shares(a, b, &model::Task::descriptors);
  birth.share_fs = shares(a, b, &model::Task::fs);
  birth.share_memory = shares(a, b, &model::Task::address_space);
  birth.share_handlers = birth.share_memory && shares(a, b, &model::Task::handlers);
  return birth;
}

}  // namespace

void TreeEmission::note_objects(Pid pid) {
  const auto* task = out_.tasks.find(pid);
  if (task == nullptr || task->state == model::TaskState::zombie) return;
  for (size_t kind = 0; kind < std::size(shareable); ++kind) {
    const ObjectId object = task->*shareable[kind].first;
    if (object.value != 0) born_objects_[kind].insert(object);  // 0: of a bare tree, where nobody shares anything
  }
}

/// Who creates the child: whoever has what it shares with those who are there already. That is its creator in the tree,
/// or a sibling (CLONE_PARENT) that was born in the same session.
Result<Pid> TreeEmission::giver_of(Pid creator, Pid child, const std::vector<Pid>& siblings) const {
  const auto* task = out_.tasks.find(child);
  if (task == nullptr || task->state == model::TaskState::zombie) return creator;
  const char* lacking = nullptr;
  const auto has_all = [&](Pid giver) {
    for (size_t kind = 0; kind < std::size(shareable); ++kind) {
      const auto [object, what] = shareable[kind];
      if (!born_objects_[kind].contains(task->*object) || shares(out_.tasks.find(giver), task, object)) continue;
      lacking = what;
      return false;
    }
    return true;
  };
  if (has_all(creator)) return creator;
  for (const Pid sibling : siblings) {
    // An init can neither create siblings nor be created as one.
    const bool is_init = out_.spaces.is_init(sibling) || out_.spaces.is_init(child);
    if (!tree_.is_leader(sibling) && !is_init && has_all(sibling)) return sibling;
  }
  return fail(Error::conflict("plan the process tree",
                              fmt::format("task {} '{}' shares its {} with a task that is neither its creator nor its "
                                          "sibling",
                                          child, task->name, lacking)));
}

Status TreeEmission::spawn(std::vector<Growing>& line, Pid child) {
  auto& parent = line.back();
  const Pid creator = parent.pid;
  const auto& node = tree_.nodes.at(child);
  const bool moves = (!node.transient && node.parent != creator) || tree_.birth_groups.contains(child);
  const Pid giver = TRY(giver_of(creator, child, moves ? std::vector<Pid>{} : parent.born));
  if (moves) return begin(line, {.pid = child, .copy_of = creator, .relay = fork_through_relay(creator, child)});
  out_.take_table(giver);
  if (giver == creator)
    out_.process(creator).add(fork_of(creator, child));
  else
    out_.process(giver).add(birth_of<Clone>(out_, giver, child));
  parent.born.push_back(child);
  return begin(line, {.pid = child, .copy_of = giver});
}

Fork TreeEmission::fork_of(Pid giver, Pid child) const {
  auto fork = birth_of<Fork>(out_, giver, child);
  fork.new_pid_namespace = out_.spaces.is_init(child);
  return fork;
}

/// Of those whose parent ends in the pid namespace of `creator`, without having to be a subreaper.
bool TreeEmission::is_reaper(Pid pid, Pid creator) const {
  const Pid space = out_.spaces.of(creator);
  return space.value != 0 ? pid == space : pid == tree_.root && tree_.root_is_namespace_init;
}

/// A namespace that begins in a group from outside: the leader founds the group as soon as it is born, leaves somebody
/// in it, and goes back to the group that all are born in. Those who are to be in the group join it later.
void TreeEmission::hold_group(Pid leader) {
  auto sink = out_.process(leader);
  sink.add(SetPgid{leader, leader});
  const Fork holder = out_.transient(leader);
  out_.take_table(leader);
  sink.add(holder);
  sink.add(SetPgid{leader, tree_.nodes.at(leader).session});
  held_groups_[leader] = {holder.child_pid, leader};
  out_.bereaved.insert(leader);
}

/// The relay's child, an init, inherits the group. If its leader is dead somebody stands in.
void TreeEmission::enter_birth_group(Pid creator, Pid relay, Pid group) {
  if (!tree_.nodes.contains(group) && !held_groups_.contains(group)) {
    Fork leader;
    leader.child_pid = group;
    leader.nested_pids = out_.spaces.nested(group.value);
    out_.take_table(creator);
    out_.process(creator).add(leader);
    out_.process(group).add(SetPgid{group, group});
    out_.post(out_.process(group), fmt::format("early group {}", group));
    held_groups_[group] = {group, creator};
    out_.bereaved.insert(creator);
  }
  out_.await_all(out_.process(relay), fmt::format("early group {}", group));
  out_.process(relay).add(SetPgid{relay, group});
}

/// creator → relay → child. The relay's pid is returned.
Pid TreeEmission::fork_through_relay(Pid creator, Pid child) {
  const Fork passing = out_.transient(creator), born = fork_of(creator, child);
  const Pid relay = passing.child_pid;
  Fork fork = born;
  fork.child_pid = relay, fork.nested_pids = passing.nested_pids, fork.new_pid_namespace = false;
  out_.take_table(creator);
  out_.process(creator).add(fork);
  if (const auto group = tree_.birth_groups.find(child); group != tree_.birth_groups.end())
    enter_birth_group(creator, relay, group->second);
  out_.process(relay).add(born);
  return relay;
}

/// When the child's own work is done its final parent adopts it: it becomes the nearest living subreaper among the
/// relay's ancestors, and the relay ends. One such lift at a time: two subreapers on one line would take each other's
/// children.
void TreeEmission::lift(const Growing& grown) {
  const Pid child = grown.pid, relay = grown.relay, creator = grown.copy_of;
  const Pid adopter = tree_.nodes.at(child).parent;
  const bool is_reaper_anyway = is_reaper(adopter, creator);
  const auto lift = fmt::format("lift {}", ++lifts_);
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
  out_.bereaved.insert(creator);
  out_.post(out_.process(creator), lift + " moved");
  out_.await_all(out_.process(adopter), lift + " moved");
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
  std::vector<Pid> order, open{tree_.root};
  while (!open.empty()) {
    const Pid pid = open.back();
    open.pop_back();
    order.push_back(pid);
    for (const auto* of : {&tree_.before_setsid, &tree_.children})
      open.insert(open.end(), listed(*of, pid).begin(), listed(*of, pid).end());
  }
  for (const Pid pid : std::views::reverse(order)) {
    if (!tree_.nodes.at(pid).transient) continue;
    out_.await_all(out_.process(pid), "grouped");
    out_.process(pid).add(Exit{0});
    const Pid creator = tree_.creator.at(pid);
    out_.process(creator).add(Wait{pid});
    out_.bereaved.insert(creator);
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
