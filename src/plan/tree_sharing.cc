// Tables, directories, memory and handlers that tasks have in common: who has what at his birth, and who can give it.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "plan/tree_emission.h"

namespace stasis::plan {
namespace {

/// What tasks can have in common with CLONE_FILES, CLONE_FS, CLONE_VM and CLONE_SIGHAND.
struct Shareable {
  ObjectId model::Task::* object;
  bool Fork::* flag;
  const char* what;
  const char* between;  ///< why those who are between two that share it cannot have had it themselves
};
constexpr const char* own_is_shared = "those between them were born with another, which they share with others";
constexpr const char* left_by_execve = "those between them have left it, which takes execve and is not planned";
constexpr Shareable shareable[] = {
    {&model::Task::descriptors, &Fork::share_files, "descriptor table", own_is_shared},
    {&model::Task::fs, &Fork::share_fs, "working directory", own_is_shared},
    {&model::Task::address_space, &Fork::share_memory, "memory", left_by_execve},
    {&model::Task::handlers, &Fork::share_handlers, "signal handlers", left_by_execve},
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

/// It has created all others who have what it carries: that is theirs alone from here on. What it has instead is new.
Status TreeEmission::unshare(Pid pid, bool files, bool fs) {
  const Unshare unshare{.files = files && carried_by(pid, files_kind).value != 0,
                        .fs = fs && carried_by(pid, fs_kind).value != 0};
  if (unshare.files && born_objects_[files_kind].contains(own(pid, files_kind))) return fail(apart(pid, files_kind));
  if (unshare.fs && born_objects_[fs_kind].contains(own(pid, fs_kind))) return fail(apart(pid, fs_kind));
  if (!unshare.files && !unshare.fs) return {};
  if (unshare.files) out_.take_table(pid);
  out_.process(pid).add(unshare);
  const ObjectId table = out_.table_of(pid);
  if (unshare.files) out_.leave_table(pid);
  if (unshare.fs) out_.carried.fs.erase(pid);
  note_objects(pid);
  if (unshare.files) hooks_.unshared(pid, table);
  return {};
}

/// The child is to have what its creator has when it carries nothing any more.
Status TreeEmission::unshare_for(Pid creator, Pid child) {
  const auto wants_own = [&](size_t kind) {
    return carried_by(creator, kind).value != 0 && current(child, kind).value != 0 &&
           current(child, kind) == own(creator, kind);
  };
  return unshare(creator, wants_own(files_kind), wants_own(fs_kind));
}

Error TreeEmission::apart(Pid pid, size_t kind) const {
  const auto* task = out_.tasks.find(pid);
  const auto subject =
      task == nullptr ? fmt::format("{}, which has ended,", pid) : fmt::format("task {} '{}'", pid, task->name);
  return Error::conflict("plan the process tree",
                         fmt::format("{} shares its {} with a task that is neither its creator nor its sibling: {}",
                                     subject, shareable[kind].what, shareable[kind].between));
}

/// What it has of one kind in the end. 0: nothing that it could have in common with others.
ObjectId TreeEmission::own(Pid pid, size_t kind) const {
  const auto* task = out_.tasks.find(pid);
  return task == nullptr || task->state == model::TaskState::zombie ? ObjectId{} : task->*shareable[kind].object;
}
/// What it has now, or is to be born with.
ObjectId TreeEmission::current(Pid pid, size_t kind) const {
  const ObjectId carried = carried_by(pid, kind);
  return carried.value != 0 ? carried : own(pid, kind);
}
bool TreeEmission::share_at_birth(Pid a, Pid b, size_t kind) const {
  return current(a, kind).value != 0 && current(a, kind) == current(b, kind);
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
    if (const ObjectId object = current(pid, kind); object.value != 0) born_objects_[kind].insert(object);
  }
}

/// Who creates the child: whoever has what it shares with those who are there already. That is its creator in the tree,
/// or a sibling (CLONE_PARENT) that was born in the same session.
Result<Pid> TreeEmission::giver_of(Pid creator, Pid child, const std::vector<Pid>& siblings) const {
  size_t lacking = 0;
  const auto has_all = [&](Pid giver) {
    for (size_t kind = 0; kind < std::size(shareable); ++kind) {
      if (!born_objects_[kind].contains(current(child, kind)) || share_at_birth(giver, child, kind)) continue;
      lacking = kind;
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
  return fail(apart(child, lacking));
}

// ---- siblings that share what their creator does not have

/// Of those who are born in one session: all of a family share the same, or another way is tried (giver_of).
void TreeEmission::find_families(Pid creator, const std::vector<Pid>& children) {
  std::map<std::pair<size_t, ObjectId>, std::vector<Pid>> sharers;
  for (const Pid child : children) {
    const auto* task = out_.tasks.find(child);
    if (task == nullptr || task->state == model::TaskState::zombie || entries_.contains(child)) continue;
    for (size_t kind = 0; kind < std::size(shareable); ++kind) {
      const ObjectId object = current(child, kind);
      const bool comes_from_creator = share_at_birth(creator, child, kind) || object == own(creator, kind);
      if (object.value != 0 && !comes_from_creator) sharers[{kind, object}].push_back(child);
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
    if (!is_alone || !needs_holder(creator, members) || !are_of_one_time(creator, members)) continue;
    for (const Pid member : members) family_of_[member] = families_.size();
    auto& family = families_.emplace_back(Family{creator, {}, members});
    for (size_t kind = 0; kind < std::size(shareable); ++kind) {
      const ObjectId object = current(members.front(), kind);
      const auto having = sharers.find({kind, object});
      if (having != sharers.end() && having->second == members) family.common[kind] = object;
    }
  }
}

/// None of them is to have what the creator carries if another is to have what comes to the creator later.
bool TreeEmission::are_of_one_time(Pid creator, const std::vector<Pid>& family) const {
  return std::ranges::none_of(std::array{files_kind, fs_kind}, [&](size_t kind) {
    const auto has = [&](ObjectId object) {
      return std::ranges::any_of(family, [&](Pid member) { return current(member, kind) == object; });
    };
    return carried_by(creator, kind).value != 0 && has(carried_by(creator, kind)) && own(creator, kind).value != 0 &&
           has(own(creator, kind));
  });
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
    for (const Pid member : family.members) TRY(unshare_for(creator, member));
    Fork holder = out_.transient(creator);
    for (size_t kind = 0; kind < std::size(shareable); ++kind) {
      holder.*shareable[kind].flag =
          std::ranges::any_of(family.members, [&](Pid member) { return share_at_birth(creator, member, kind); });
    }
    family.holder = holder.child_pid;
    out_.take_table(creator);
    out_.process(creator).add(holder);
    const ObjectId table = holder.share_files ? current(creator, files_kind) : family.common[files_kind];
    if (table.value != 0) out_.carried.files[family.holder] = table;
  }
  Fork born = birth_of<Fork>(creator, child);
  const bool is_eldest = family.born++ == 0;
  for (size_t kind = 0; kind < std::size(shareable); ++kind) {
    auto& shared = born.*shareable[kind].flag;
    const bool is_common = family.common[kind].value != 0;
    const bool comes_anew = is_common ? is_eldest : !shared;
    if (comes_anew && born_objects_[kind].contains(current(child, kind))) return fail(apart(child, kind));
    shared = shared || is_common;
  }
  const auto origin_of = [&](size_t kind) { return !is_eldest && family.common[kind].value != 0 ? eldest : creator; };
  const Origin origin{origin_of(files_kind), origin_of(memory_kind)};
  const Pid relay = fork_through_relay(family.holder, born);
  return begin(line, {child, creator, origin, relay, family.holder, family.born == family.members.size()});
}

}  // namespace stasis::plan
