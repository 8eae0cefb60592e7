#include "plan/tree_emission.h"

#include <fmt/format.h>

#include <algorithm>
#include <ranges>
#include <utility>

namespace stasis::plan {
namespace {

std::string began(Pid space) { return fmt::format("the pid namespace of {} has begun", space); }
std::string founded_early(Pid group) { return fmt::format("early group {}", group); }

/// What tasks can have in common with CLONE_FILES, CLONE_FS, CLONE_VM and CLONE_SIGHAND.
struct Shareable {
  ObjectId model::Task::* object;
  bool Fork::* flag;
  const char* what;
};
constexpr Shareable shareable[] = {
    {&model::Task::descriptors, &Fork::share_files, "descriptor table"},
    {&model::Task::fs, &Fork::share_fs, "working directory"},
    {&model::Task::address_space, &Fork::share_memory, "memory"},
    {&model::Task::handlers, &Fork::share_handlers, "signal handlers"},
};

/// Their indices.
enum Kind : size_t { files_kind, fs_kind, memory_kind, handlers_kind };

}  // namespace

TreeEmission::TreeEmission(Emission& out, const CreationTree& tree, TreeHooks hooks)
    : out_(out), tree_(tree), hooks_(std::move(hooks)) {
  out.reserve_numbers(tree.taken, tree.root_is_namespace_init ? 0 : out.options.first_transient_pid);
  for (const auto& [terminal, about] : out.application.terminals) {
    if (about.session.value != 0) terminals_[about.session] = terminal;
  }
  for (const Pid pid : tree.deferred) {
    entries_[pid] = {};
    entered_.insert({out.spaces.of(tree.nodes.at(pid).parent), out.spaces.born_in(pid)});
  }
  find_carriers();
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
  return {};
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
      if (carried_fs_.contains(grown.pid)) out_.process(grown.pid).add(Unshare{.fs = true});
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
  TRY(hooks_.born(pid, born.origin));
  note_objects(pid);
  if (entered_.contains(pid)) out_.post(out_.process(pid), began(pid));
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

/// What it has at birth of one kind. 0: nothing that it could have in common with others.
ObjectId TreeEmission::born_with(Pid pid, size_t kind) const {
  if (const auto carried = carried_fs_.find(pid); kind == fs_kind && carried != carried_fs_.end())
    return carried->second;
  const auto* task = out_.tasks.find(pid);
  return task == nullptr || task->state == model::TaskState::zombie ? ObjectId{} : task->*shareable[kind].object;
}
bool TreeEmission::share_at_birth(Pid a, Pid b, size_t kind) const {
  return born_with(a, kind).value != 0 && born_with(a, kind) == born_with(b, kind);
}

/// A FORK or CLONE by the giver.
template <typename Birth>
Birth TreeEmission::birth_of(Pid giver, Pid child) const {
  Birth birth;
  birth.child_pid = child;
  birth.nested_pids = out_.spaces.nested(child.value);
  birth.share_files = share_at_birth(giver, child, files_kind);
  birth.share_fs = share_at_birth(giver, child, fs_kind);
  birth.share_memory = share_at_birth(giver, child, memory_kind);
  birth.share_handlers = birth.share_memory && share_at_birth(giver, child, handlers_kind);
  return birth;
}

void TreeEmission::note_objects(Pid pid) {
  for (size_t kind = 0; kind < std::size(shareable); ++kind) {
    if (const ObjectId object = born_with(pid, kind); object.value != 0) born_objects_[kind].insert(object);
  }
}

/// Where a working directory is common to some, and not to those between them in the tree of creators, these have it
/// until they have created all others.
void TreeEmission::find_carriers() {
  std::map<ObjectId, std::vector<Pid>> users;
  for (const auto& task : out_.application.tasks) {
    if (const ObjectId fs = born_with(task.pid, fs_kind); fs.value != 0) users[fs].push_back(task.pid);
  }
  std::map<Pid, ObjectId> carriers;
  for (const auto& [fs, all] : users) {
    if (all.size() < 2) continue;
    std::map<Pid, size_t> above;  // how many of them are at or below
    for (const Pid user : all) {
      ++above[user];
      for (Pid at = user; at != tree_.root;) ++above[at = tree_.creator.at(at)];
    }
    Pid top = all.front();
    while (above.at(top) < all.size()) top = tree_.creator.at(top);
    std::vector<Pid> between;
    for (const auto& [pid, below] : above) {
      const bool is_between = pid == top || below < all.size();
      if (is_between && born_with(pid, fs_kind) != fs) between.push_back(pid);
    }
    if (between == std::vector{top}) continue;  // they are siblings
    for (const Pid pid : between) {
      const auto own = users.find(born_with(pid, fs_kind));
      if (own == users.end() || own->second.size() == 1) carriers.emplace(pid, fs);
    }
  }
  carried_fs_ = std::move(carriers);
}

/// Who creates the child: whoever has what it shares with those who are there already. That is its creator in the tree,
/// or a sibling (CLONE_PARENT) that was born in the same session.
Result<Pid> TreeEmission::giver_of(Pid creator, Pid child, const std::vector<Pid>& siblings) const {
  const char* lacking = nullptr;
  const auto has_all = [&](Pid giver) {
    for (size_t kind = 0; kind < std::size(shareable); ++kind) {
      if (!born_objects_[kind].contains(born_with(child, kind)) || share_at_birth(giver, child, kind)) continue;
      lacking = shareable[kind].what;
      return false;
    }
    return true;
  };
  if (has_all(creator)) return creator;
  for (const Pid sibling : siblings) {
    // An init can neither create siblings nor be created as one.
    const bool is_init = out_.spaces.is_init(sibling) || out_.spaces.is_init(child);
    const bool of_one_thread = thread_for(creator, sibling) == thread_for(creator, child);
    if (!tree_.is_leader(sibling) && !is_init && of_one_thread && has_all(sibling)) return sibling;
  }
  return fail(Error::conflict("plan the process tree",
                              fmt::format("task {} '{}' shares its {} with a task that is neither its creator nor its "
                                          "sibling",
                                          child, out_.tasks.find(child)->name, lacking)));
}

Status TreeEmission::spawn(std::vector<Growing>& line, Pid child) {
  auto& parent = line.back();
  const Pid creator = parent.pid;
  const auto& node = tree_.nodes.at(child);
  if (entries_.contains(child)) return await_entry(creator, child);
  if (family_of_.contains(child)) return spawn_from_holder(line, child);
  if (tree_.siblings.contains(child)) {
    // Whoever adopts its creator adopts it, too.
    TRY(giver_of(creator, child, {}));
    out_.take_table(creator);
    out_.process(creator).add(birth_of<Clone>(creator, child));
    return begin(line, {child, creator, {creator, creator}});
  }
  const bool moves = !node.transient && node.parent != creator;
  const Pid giver = TRY(giver_of(creator, child, moves ? std::vector<Pid>{} : parent.born));
  if (moves) {
    const Pid relay = fork_through_relay(creator, fork_of(creator, child));
    return begin(line, {child, creator, {creator, creator}, relay, creator});
  }
  out_.take_table(giver);
  if (giver == creator)
    out_.add_by(creator, thread_for(creator, child), fork_of(creator, child));
  else
    out_.process(giver).add(birth_of<Clone>(giver, child));
  parent.born.push_back(child);
  return begin(line, {child, creator, {giver, giver}});
}

Tid TreeEmission::thread_for(Pid creator, Pid child) const {
  const auto* task = out_.tasks.find(child);
  return task != nullptr && task->parent == creator ? out_.parent_thread(*task) : leader_of(creator);
}

Fork TreeEmission::fork_of(Pid giver, Pid child) const {
  auto fork = birth_of<Fork>(giver, child);
  fork.new_pid_namespace = out_.spaces.is_init(child);
  return fork;
}

/// Of those whose parent ends in its pid namespace, without having to be a subreaper.
bool TreeEmission::adopts_anyway(Pid pid) const {
  const Pid space = out_.spaces.of(pid);
  return space.value != 0 ? pid == space : pid == tree_.root && tree_.root_is_namespace_init;
}

/// giver → relay → child. The relay's pid is returned.
Pid TreeEmission::fork_through_relay(Pid giver, const Fork& born) {
  const Fork passing = out_.transient_in(out_.spaces.of(tree_.creator.at(born.child_pid)));
  Fork fork = born;
  fork.child_pid = passing.child_pid, fork.nested_pids = passing.nested_pids, fork.new_pid_namespace = false;
  out_.take_table(giver);
  out_.process(giver).add(fork);
  out_.process(passing.child_pid).add(born);
  return passing.child_pid;
}

// ---- siblings that share what their creator does not have

/// Of those who are born in one session: all of a family share the same, or another way is tried (giver_of).
void TreeEmission::find_families(Pid creator, const std::vector<Pid>& children) {
  std::map<std::pair<size_t, ObjectId>, std::vector<Pid>> sharers;
  for (const Pid child : children) {
    const auto* task = out_.tasks.find(child);
    if (task == nullptr || task->state == model::TaskState::zombie || entries_.contains(child)) continue;
    for (size_t kind = 0; kind < std::size(shareable); ++kind) {
      const ObjectId object = born_with(child, kind);
      if (object.value != 0 && !share_at_birth(creator, child, kind)) sharers[{kind, object}].push_back(child);
    }
  }
  std::set<std::vector<Pid>> families;
  std::map<Pid, size_t> of_how_many;
  for (auto& [object, members] : sharers) {
    if (members.size() > 1) families.insert(members);
  }
  for (const auto& members : families) {
    for (const Pid member : members) ++of_how_many[member];
  }
  for (const auto& members : families) {
    const bool is_alone = std::ranges::all_of(members, [&](Pid member) { return of_how_many.at(member) == 1; });
    if (!is_alone || !needs_holder(creator, members)) continue;
    for (const Pid member : members) family_of_[member] = families_.size();
    families_.push_back({creator, {}, members});
  }
}

/// The eldest could create the others (CLONE_PARENT) if it stays what it is born as.
bool TreeEmission::needs_holder(Pid creator, const std::vector<Pid>& family) const {
  return tree_.is_leader(family.front()) || std::ranges::any_of(family, [&](Pid member) {
           return tree_.nodes.at(member).parent != creator || out_.spaces.is_init(member) ||
                  thread_for(creator, member) != leader_of(creator);
         });
}

/// creator → holder → relay → child: the child is the relay's orphan, the holder stays for the others.
Status TreeEmission::spawn_from_holder(std::vector<Growing>& line, Pid child) {
  auto& family = families_.at(family_of_.at(child));
  const Pid creator = family.creator;
  const Pid eldest = family.members[0];
  if (family.born == 0) {
    Fork holder = out_.transient(creator);
    for (size_t kind = 0; kind < std::size(shareable); ++kind) {
      holder.*shareable[kind].flag =
          std::ranges::any_of(family.members, [&](Pid member) { return share_at_birth(creator, member, kind); });
    }
    family.holder = holder.child_pid;
    out_.take_table(creator);
    out_.process(creator).add(holder);
  }
  Fork born = fork_of(creator, child);
  for (size_t kind = 0; kind < std::size(shareable); ++kind) {
    auto& shared = born.*shareable[kind].flag;
    shared = shared || share_at_birth(eldest, family.members[1], kind);
  }
  const bool is_eldest = family.born++ == 0;
  const auto origin_of = [&](size_t kind) {
    return !is_eldest && share_at_birth(eldest, child, kind) ? eldest : creator;
  };
  const Origin origin{origin_of(files_kind), origin_of(memory_kind)};
  const Pid relay = fork_through_relay(family.holder, born);
  return begin(line, {child, creator, origin, relay, family.holder, family.born == family.members.size()});
}

// ---- who comes into a pid namespace from outside

/// The child is born when all others are. A porter is forked already: later it would not have, from its creator, the
/// session and the group that the child is to be born in.
Status TreeEmission::await_entry(Pid creator, Pid child) {
  TRY(giver_of(creator, child, {}));
  const auto group = tree_.birth_groups.find(child);
  if (group != tree_.birth_groups.end()) stand_in(creator, group->second);
  const Fork passing = out_.transient(creator);
  Fork fork = birth_of<Fork>(creator, child);
  fork.child_pid = passing.child_pid, fork.nested_pids = passing.nested_pids;
  out_.take_table(creator);
  out_.process(creator).add(fork);
  entries_[child] = {creator, passing.child_pid};
  return {};
}

/// creator → porter → child, or porter → relay → child where the child's parent is the init of a namespace that the
/// creator is not in: the relay, who lives there, leaves it an orphan.
Status TreeEmission::enter(std::vector<Growing>& line, Pid child) {
  const auto [creator, porter] = entries_.at(child);
  const auto& spaces = out_.spaces;
  const Pid parents = spaces.of(tree_.nodes.at(child).parent), own = spaces.born_in(child);
  Fork born = fork_of(creator, child);
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

/// Somebody stands in for the dead leader of a group that a child is to be born in.
void TreeEmission::stand_in(Pid creator, Pid group) {
  if (tree_.nodes.contains(group) || !founded_early_.insert(group).second) return;
  Fork leader;
  leader.child_pid = group;
  leader.nested_pids = out_.spaces.nested(group.value);
  out_.take_table(creator);
  out_.process(creator).add(leader);
  out_.process(group).add(SetPgid{group, group});
  out_.post(out_.process(group), founded_early(group));
  held_groups_[group] = {group, creator};
  out_.bereaved.insert(creator);
}

/// Its leader has created all that it creates, but for porters. Where it belongs to another group itself, somebody
/// stays in this one.
void TreeEmission::found_early(Pid group) {
  const auto leader = tree_.nodes.find(group);
  if (leader == tree_.nodes.end() || leader->second.session == group || !founded_early_.insert(group).second) return;
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

/// When the child's own work is done its final parent adopts it: it becomes the nearest living subreaper among the
/// relay's ancestors, and the relay ends. One such lift at a time: two subreapers on one line would take each other's
/// children.
void TreeEmission::lift(const Growing& grown) {
  const Pid child = grown.pid, relay = grown.relay, creator = grown.creator;
  const Pid adopter = tree_.nodes.at(child).parent;
  const bool is_reaper_anyway = adopts_anyway(adopter);
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
  out_.process(grown.relay_of).add(Wait{relay});
  const bool ends = grown.relay_of != creator && grown.ends_it;
  if (ends) {
    out_.process(grown.relay_of).add(Exit{0});
    out_.process(creator).add(Wait{grown.relay_of});
  }
  out_.bereaved.insert(creator);
  out_.post(out_.process(ends ? creator : grown.relay_of), lift + " moved");
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
  const auto order = birth_order(tree_);
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
