#include "plan/tree_emission.h"

#include <fmt/format.h>

#include <algorithm>

#include "plan/tree_groups.h"

namespace stasis::plan {

TreeEmission::TreeEmission(Emission& out, const CreationTree& tree, TreeHooks hooks)
    : out_(out), tree_(tree), hooks_(std::move(hooks)) {
  const auto first = out.options.first_transient_pid;
  out.reserve_pids(tree.taken, first != 0 && !tree.root_is_namespace_init ? first : *tree.taken.rbegin() + 1);
}

Status TreeEmission::create() {
  Fork fork;
  fork.child_pid = tree_.root;
  fork.new_pid_namespace = tree_.root_is_namespace_init;
  out_.process(Pid{0}).add(fork);
  return create(tree_.root, Pid{0});
}

Status TreeEmission::create(Pid pid, Pid creator) {
  out_.take_table(pid);
  TRY(hooks_.born(pid, creator));
  note_objects(pid);
  TRY(spawn_all(pid, tree_.before_setsid));
  if (tree_.is_leader(pid)) out_.process(pid).add(SetSid{});
  return spawn_all(pid, tree_.children);
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
Birth birth_of(const model::TaskIndex& tasks, Pid giver, Pid child) {
  const auto *a = tasks.find(giver), *b = tasks.find(child);
  Birth birth;
  birth.child_pid = child;
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
    if (!tree_.is_leader(sibling) && has_all(sibling)) return sibling;
  }
  return fail(Error::conflict("plan the process tree",
                              fmt::format("task {} '{}' shares its {} with a task that is neither its creator nor its "
                                          "sibling",
                                          child, task->name, lacking)));
}

Status TreeEmission::spawn_all(Pid creator, const std::map<Pid, std::vector<Pid>>& children_of) {
  const auto children = children_of.find(creator);
  if (children == children_of.end()) return {};
  std::vector<Pid> siblings;
  for (const Pid child : children->second) {
    const auto& node = tree_.nodes.at(child);
    const bool moves = !node.transient && node.parent != creator;
    const Pid giver = TRY(giver_of(creator, child, moves ? std::vector<Pid>{} : siblings));
    if (moves) {
      TRY(spawn_through_relay(creator, child));
      continue;
    }
    out_.take_table(giver);
    if (giver == creator)
      out_.process(creator).add(birth_of<Fork>(out_.tasks, creator, child));
    else
      out_.process(giver).add(birth_of<Clone>(out_.tasks, giver, child));
    TRY(create(child, giver));
    siblings.push_back(child);
  }
  return {};
}

/// creator → relay → child; when the child's own work is done its final parent adopts it: it becomes the nearest living
/// subreaper among the relay's ancestors, and the relay ends. One such lift at a time: two subreapers on one line would
/// take each other's children.
Status TreeEmission::spawn_through_relay(Pid creator, Pid child) {
  const Pid relay = out_.fresh_pid();
  const Pid adopter = tree_.nodes.at(child).parent;
  const bool is_reaper_anyway = adopter == tree_.root && tree_.root_is_namespace_init;
  Fork fork = birth_of<Fork>(out_.tasks, creator, child);
  fork.child_pid = relay;
  out_.take_table(creator);
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
  out_.bereaved.insert(creator);
  out_.post(out_.process(creator), lift + " moved");
  out_.await_all(out_.process(adopter), lift + " moved");
  if (!is_reaper_anyway) out_.process(adopter).add(SetChildReaper{false});
  out_.post(out_.process(adopter), lift);
  last_lift_ = lift;
  return {};
}

void TreeEmission::groups() { emit_groups(out_, tree_); }

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
  out_.bereaved.insert(creator);
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
    out_.bereaved.insert(node.parent);
  }
}

}  // namespace stasis::plan
