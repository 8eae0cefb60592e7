// Tables, directories, memory and handlers that tasks have in common: who has what at his birth, and who can give it.
#include <fmt/format.h>

#include <algorithm>

#include "plan/tree_emission.h"

namespace stasis::plan {
namespace {

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

ObjectId TreeEmission::carried_by(Pid pid, size_t kind) const {
  if (kind != files_kind && kind != fs_kind) return {};
  const auto& carried = kind == files_kind ? out_.carried.files : out_.carried.fs;
  const auto found = carried.find(pid);
  return found == carried.end() ? ObjectId{} : found->second;
}

/// It has created all others: what it carried for them is theirs alone from here on.
void TreeEmission::unshare(const Growing& grown) {
  const Unshare unshare{.files = carried_by(grown.pid, files_kind).value != 0,
                        .fs = carried_by(grown.pid, fs_kind).value != 0};
  if (!unshare.files && !unshare.fs) return;
  if (unshare.files) out_.take_table(grown.pid);
  out_.process(grown.pid).add(unshare);
  if (!unshare.files) return;
  const ObjectId table = out_.table_of(grown.pid);
  out_.carried.files.erase(grown.pid);
  hooks_.unshared(grown.pid, table);
}

/// What it has at birth of one kind. 0: nothing that it could have in common with others.
ObjectId TreeEmission::born_with(Pid pid, size_t kind) const {
  if (const ObjectId carried = carried_by(pid, kind); carried.value != 0) return carried;
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
  birth.new_pid_namespace = out_.spaces.is_init(child);
  birth.share_files = share_at_birth(giver, child, files_kind);
  birth.share_fs = share_at_birth(giver, child, fs_kind);
  birth.share_memory = share_at_birth(giver, child, memory_kind);
  birth.share_handlers = birth.share_memory && share_at_birth(giver, child, handlers_kind);
  return birth;
}

template Fork TreeEmission::birth_of<Fork>(Pid, Pid) const;
template Clone TreeEmission::birth_of<Clone>(Pid, Pid) const;

void TreeEmission::note_objects(Pid pid) {
  for (size_t kind = 0; kind < std::size(shareable); ++kind) {
    if (const ObjectId object = born_with(pid, kind); object.value != 0) born_objects_[kind].insert(object);
  }
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
    const bool can_have_siblings = !tree_.is_leader(sibling) && !out_.spaces.is_init(sibling);
    const bool of_one_thread = thread_for(creator, sibling) == thread_for(creator, child);
    if (can_have_siblings && of_one_thread && has_all(sibling)) return sibling;
  }
  return fail(Error::conflict("plan the process tree",
                              fmt::format("task {} '{}' shares its {} with a task that is neither its creator nor its "
                                          "sibling",
                                          child, out_.tasks.find(child)->name, lacking)));
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
           return tree_.nodes.at(member).parent != creator || tree_.moved.contains(member) ||
                  out_.spaces.is_init(member) || thread_for(creator, member) != leader_of(creator);
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
  Fork born = birth_of<Fork>(creator, child);
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

}  // namespace stasis::plan
