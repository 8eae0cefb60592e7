#include "plan/descriptors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/syscall.h>

#include <algorithm>

namespace stasis::plan {
namespace {

std::string opened_by(Pid pid) { return fmt::format("opened by {}", pid); }
std::string taken_from(Pid pid) { return fmt::format("taken from {}", pid); }

/// F_SETOWN_EX records the caller's ids as the sender's: the ids that stasis restores with, not the original ones,
/// which only matter when a signal is sent to a process of another user (fs/fcntl.c, sigio_perm). `id` is the owner as
/// the caller's pid namespace has it.
Calls owner_calls(int fd, const model::FileOwner& owner, pid_t id) {
  Calls calls;
  if (owner.kind != model::FileOwner::Kind::none) {
    const int type = owner.kind == model::FileOwner::Kind::thread    ? F_OWNER_TID
                     : owner.kind == model::FileOwner::Kind::process ? F_OWNER_PID
                                                                     : F_OWNER_PGRP;
    calls.push_back(call(SYS_fcntl, fd, F_SETOWN_EX, struct_in(f_owner_ex{static_cast<__pid_type>(type), id})));
  }
  if (owner.signal != 0) calls.push_back(call(SYS_fcntl, fd, F_SETSIG, owner.signal));
  return calls;
}

}  // namespace

DescriptorPlan::DescriptorPlan(Emission& out) : out_(out) {
  for (const auto& task : out.application.tasks) {
    if (task.state == model::TaskState::zombie || !table_worker_.emplace(task.descriptors, task.pid).second) continue;
    for (const auto& [fd, slot] : out.application.descriptor_tables.at(task.descriptors).slots) {
      auto& made = known(slot.description, task.pid, fd);
      made.uses.push_back({task.pid, fd, slot.close_on_exec});
      used_by_[task.pid].emplace_back(slot.description, made.uses.back());
    }
  }
  add_mapped_files();
}

/// What is known of a description; when it is new, `pid` makes it at `fd` (-1: at a passing number), or whoever makes
/// what has to be made together with it.
DescriptorPlan::Made& DescriptorPlan::known(ObjectId id, Pid pid, int fd) {
  const auto [entry, fresh] = made_.try_emplace(id);
  auto& made = entry->second;
  if (!fresh) return made;
  made.owner = pid;
  made.fd = fd;
  made.temporary = fd < 0;
  const auto& description = out_.application.descriptions.at(id);
  made.maker = out_.maker(description);
  const ObjectId together = made.maker != nullptr ? made.maker->made_together(description) : ObjectId{};
  const auto group = together.value == 0 ? group_of_.end() : group_of_.find(together);
  if (group == group_of_.end()) {
    if (together.value != 0) group_of_[together] = {pid, groups_[pid].size()};
    groups_[pid].push_back({id});
    return made;
  }
  const auto [owner, index] = group->second;
  groups_[owner][index].push_back(id);
  if (owner != pid) {  // somebody before us has the other end and makes this one for us
    made.owner = owner;
    made.temporary = true;
    made.fd = -1;
  }
  return made;
}

/// Mapped files that no path leads to (memfds): made once like descriptors, and passed to everybody who maps them.
void DescriptorPlan::add_mapped_files() {
  for (const auto& task : out_.application.tasks) {
    if (task.state == model::TaskState::zombie) continue;
    const auto space = out_.application.address_spaces.find(task.address_space);
    if (space == out_.application.address_spaces.end()) continue;
    for (const auto& mapping : space->second.mappings) {
      const auto description = out_.application.descriptions.find(mapping.file);
      if (description == out_.application.descriptions.end()) continue;
      const auto* maker = out_.maker(description->second);
      if (maker == nullptr || maker->reopenable()) continue;
      const Pid worker = table_worker_.at(task.descriptors);
      if (known(mapping.file, worker, -1).mapped_at.emplace(worker, -1).second)
        mapped_by_[worker].push_back(mapping.file);
    }
  }
}

bool DescriptorPlan::works_on_table(const model::Task& task) const {
  const auto found = table_worker_.find(task.descriptors);
  return found != table_worker_.end() && found->second == task.pid;
}

Status DescriptorPlan::make_group(Pid pid, const std::vector<ObjectId>& group) {
  std::vector<Placement> placements;
  for (const ObjectId id : group) {
    auto& made = made_.at(id);
    const auto& description = out_.application.descriptions.at(id);
    if (made.maker == nullptr) {
      return fail(Error::internal("plan descriptors",
                                  fmt::format("nobody makes files of kind {}", description.state.value->kind())));
    }
    if (made.temporary) {
      made.fd = out_.temporary_fd();
      // The owner may hold it, too, under numbers of its own: those are copies.
    }
    placements.push_back(out_.placement(description, made.fd));
  }
  auto sink = out_.process(pid);
  TRY(made_.at(group.front()).maker->make(out_.application, placements, sink));
  for (const auto& placement : placements) set_state(pid, *placement.description, made_.at(placement.description->id));
  return {};
}

void DescriptorPlan::set_state(Pid pid, const model::OpenDescription& description, const Made& made) {
  auto sink = out_.process(pid);
  if (made.maker->seekable() && description.position != 0) sink.add(Lseek{made.fd, description.position});
  const auto& owner = description.owner;
  const pid_t id = out_.spaces.number(owner.id, out_.spaces.of(pid));
  auto calls = owner_calls(made.fd, owner, id);
  if (calls.empty()) return;
  if (id != 0 || owner.kind == model::FileOwner::Kind::none)
    sink.perform(fmt::format("owner of descriptor {}", made.fd), "", std::move(calls));
  else
    set_owner_outside(pid, made.fd, owner);
}

/// Whoever has the descriptor cannot name its owner, which is outside of his pid namespace. The root can.
void DescriptorPlan::set_owner_outside(Pid pid, int fd, const model::FileOwner& owner) {
  const Pid root = out_.application.root;
  const int taken = out_.temporary_fd();
  const auto lent = fmt::format("descriptor {} of {}", fd, pid);
  out_.post(out_.process(pid), lent);
  out_.take_table(root);
  auto sink = out_.process(root);
  out_.await_all(sink, lent);
  out_.transfer(pid, root, fd, taken, true);
  sink.perform(fmt::format("owner of descriptor {} of {}", fd, pid), "", owner_calls(taken, owner, owner.id));
  sink.add(Close{taken});
  out_.post(sink, taken_from(pid));
  out_.take_table(pid);
}

Status DescriptorPlan::make(Pid pid) {
  const auto groups = groups_.find(pid);
  if (groups == groups_.end()) return {};
  for (const auto& group : groups->second) {
    TRY(make_group(pid, group));
    for (const ObjectId id : group) duplicate_here(pid, made_.at(id));
  }
  bool wanted_elsewhere = false;
  for (const auto& group : groups->second) {
    for (const ObjectId id : group) {
      for (const auto& use : made_.at(id).uses) wanted_elsewhere = wanted_elsewhere || use.pid != pid;
      for (const auto& [user, fd] : made_.at(id).mapped_at) wanted_elsewhere = wanted_elsewhere || user != pid;
    }
  }
  if (wanted_elsewhere) out_.post(out_.process(pid), opened_by(pid));
  return {};
}

/// At once: as long as no number below is free, what is opened next gets its own number from the kernel and need not be
/// moved.
void DescriptorPlan::duplicate_here(Pid pid, const Made& made) {
  if (made.temporary) return;
  for (const auto& use : made.uses) {
    if (use.pid == pid && use.fd != made.fd) out_.process(pid).add(Dup2{made.fd, use.fd, use.close_on_exec});
  }
}

void DescriptorPlan::take(Pid pid) {
  std::set<Pid> sources;
  std::map<ObjectId, int> here;  // already in our table under this number
  auto sink = out_.process(pid);
  const auto transfer = [&](const Made& made, int to, bool close_on_exec) {
    if (sources.insert(made.owner).second) out_.await_all(sink, opened_by(made.owner));
    out_.transfer(made.owner, pid, made.fd, to, close_on_exec);
  };
  for (const auto& [id, use] : used_by_[pid]) {
    const auto& made = made_.at(id);
    if (made.owner == pid && !made.temporary) {  // made here, and duplicated
      if (use.fd == made.fd && use.close_on_exec) sink.add(SetCloseOnExec{use.fd, true});
    } else if (made.owner == pid || here.contains(id)) {
      sink.add(Dup2{here.contains(id) ? here[id] : made.fd, use.fd, use.close_on_exec});
    } else {
      transfer(made, use.fd, use.close_on_exec);
    }
    here.emplace(id, use.fd);
  }
  for (const ObjectId id : mapped_by_[pid]) {
    auto& made = made_.at(id);
    if (here.contains(id)) continue;
    int& at = made.mapped_at.at(pid);
    at = made.owner == pid ? made.fd : out_.temporary_fd();
    if (made.owner != pid) transfer(made, at, true);
  }
  for (const Pid source : sources) out_.post(sink, taken_from(source));
}

void DescriptorPlan::close_temporaries(Pid pid) {
  for (const ObjectId id : mapped_by_[pid]) {
    const auto& made = made_.at(id);
    if (made.mapped_at.at(pid) >= 0 && made.owner != pid) out_.process(pid).add(Close{made.mapped_at.at(pid)});
  }
  const auto groups = groups_.find(pid);
  if (groups == groups_.end()) return;
  bool waited = false;
  for (const auto& group : groups->second) {
    for (const ObjectId id : group) {
      const auto& made = made_.at(id);
      if (!made.temporary) continue;
      if (!waited) out_.await_all(out_.process(pid), taken_from(pid));
      waited = true;
      out_.process(pid).add(Close{made.fd});
    }
  }
}

OpenNumbers DescriptorPlan::open_in(Pid pid) const {
  OpenNumbers numbers;
  if (const auto used = used_by_.find(pid); used != used_by_.end()) {
    for (const auto& [id, use] : used->second) numbers.emplace(id, use.fd);
  }
  if (const auto mapped = mapped_by_.find(pid); mapped != mapped_by_.end()) {
    for (const ObjectId id : mapped->second) {
      const int fd = made_.at(id).mapped_at.at(pid);
      if (fd >= 0) numbers.emplace(id, fd);
    }
  }
  return numbers;
}

}  // namespace stasis::plan
