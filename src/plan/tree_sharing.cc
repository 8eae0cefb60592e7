// Tables, directories, memory and handlers that tasks have in common: who has what at his birth, and who can give it.
#include <fmt/format.h>

#include "plan/shareable.h"
#include "plan/tree_emission.h"

namespace stasis::plan {

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
  for (const size_t kind : {files_kind, fs_kind}) {
    const bool is_left = kind == files_kind ? unshare.files : unshare.fs;
    if (is_left && born_objects_[kind].contains(own(pid, kind))) TRY(leave_apart({pid, kind, own(pid, kind)}));
  }
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

Status TreeEmission::leave_apart(const Apart& apart) {
  if (apart_) return apart_->push_back(apart), Status{};
  const auto* task = out_.tasks.find(apart.pid);
  const auto subject = task == nullptr ? fmt::format("{}, which has ended,", apart.pid)
                                       : fmt::format("task {} '{}'", apart.pid, task->name);
  const auto& [object, flag, what, between] = shareable[apart.kind];
  return fail(
      Error::conflict("plan the process tree",
                      fmt::format("{} shares its {} with a task that is neither its creator nor its sibling: {}",
                                  subject, what, between)));
}

std::vector<TreeEmission::Apart> TreeEmission::all_apart() {
  apart_.emplace();
  const auto built = create();
  return *std::exchange(apart_, std::nullopt);
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
  for (size_t kind = 0; kind < shareable.size(); ++kind) {
    if (const ObjectId object = current(pid, kind); object.value != 0) born_objects_[kind].insert(object);
  }
}

/// Who creates the child: whoever has what it shares with those who are there already. That is its creator in the tree,
/// or a sibling (CLONE_PARENT) that was born in the same session.
Result<Pid> TreeEmission::giver_of(Pid creator, Pid child, const std::vector<Pid>& siblings) {
  size_t lacking = 0;
  const auto has_all = [&](Pid giver) {
    for (size_t kind = 0; kind < shareable.size(); ++kind) {
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
  TRY(leave_apart({child, lacking, current(child, lacking)}));
  return creator;
}

}  // namespace stasis::plan
