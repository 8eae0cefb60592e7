#include "plan/descriptors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/syscall.h>

#include <algorithm>

namespace stasis::plan {
namespace {

std::string opened_by(Pid pid) { return fmt::format("opened by {}", pid); }
std::string taken_from(Pid pid) { return fmt::format("taken from {}", pid); }

struct OwnerEx {  // struct f_owner_ex
  int type;
  pid_t pid;
};

/// F_SETOWN_EX records the caller's ids as the sender's: the ids that stasis restores with, not the original ones,
/// which only matter when a signal is sent to a process of another user (fs/fcntl.c, sigio_perm).
Calls owner_calls(int fd, const model::FileOwner& owner) {
  Calls calls;
  if (owner.kind != model::FileOwner::Kind::none) {
    const int type = owner.kind == model::FileOwner::Kind::thread    ? F_OWNER_TID
                     : owner.kind == model::FileOwner::Kind::process ? F_OWNER_PID
                                                                     : F_OWNER_PGRP;
    calls.push_back(call(SYS_fcntl, fd, F_SETOWN_EX, struct_in(OwnerEx{type, owner.id})));
  }
  if (owner.signal != 0) calls.push_back(call(SYS_fcntl, fd, F_SETSIG, owner.signal));
  return calls;
}

}  // namespace

DescriptorPlan::DescriptorPlan(Emission& out) : out_(out) {
  std::map<ObjectId, size_t> group_of;  // "made together" object → index in the owner's groups
  for (const auto& task : out.application.tasks) {
    if (task.state == model::TaskState::zombie || !table_worker_.emplace(task.descriptors, task.pid).second) continue;
    for (const auto& [fd, slot] : out.application.descriptor_tables.at(task.descriptors).slots) {
      auto& made = made_[slot.description];
      made.uses.push_back({task.pid, fd, slot.close_on_exec});
      used_by_[task.pid].emplace_back(slot.description, made.uses.back());
      if (made.uses.size() > 1) continue;
      made.owner = task.pid;
      made.fd = fd;
      const auto& description = out.application.descriptions.at(slot.description);
      made.maker = out.maker(description);
      const ObjectId together = made.maker != nullptr ? made.maker->made_together(description) : ObjectId{};
      if (together.value == 0) {
        groups_[task.pid].push_back({slot.description});
      } else if (const auto known = group_of.find(together); known == group_of.end()) {
        group_of[together] = groups_[task.pid].size();
        groups_[task.pid].push_back({slot.description});
      } else {
        // Somebody before us has the other end and makes this one for us.
        for (auto& [owner, groups] : groups_) {
          if (known->second >= groups.size()) continue;
          auto& group = groups[known->second];
          const auto& first = out.application.descriptions.at(group.front());
          const auto* maker = made_.at(group.front()).maker;
          if (maker == nullptr || maker->made_together(first) != together) continue;
          group.push_back(slot.description);
          if (owner != task.pid) {
            made.owner = owner;
            made.temporary = true;
            made.fd = -1;  // chosen when it is made
          }
          break;
        }
      }
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
  if (auto calls = owner_calls(made.fd, description.owner); !calls.empty()) {
    sink.perform(fmt::format("owner of descriptor {}", made.fd), "", std::move(calls));
  }
}

Status DescriptorPlan::make(Pid pid) {
  const auto groups = groups_.find(pid);
  if (groups == groups_.end()) return {};
  for (const auto& group : groups->second) TRY(make_group(pid, group));
  bool wanted_elsewhere = false;
  for (const auto& group : groups->second) {
    for (const ObjectId id : group) {
      for (const auto& use : made_.at(id).uses) wanted_elsewhere = wanted_elsewhere || use.pid != pid;
    }
  }
  if (wanted_elsewhere) out_.post(out_.process(pid), opened_by(pid));
  return {};
}

void DescriptorPlan::take(Pid pid) {
  std::set<Pid> sources;
  std::map<ObjectId, int> here;  // already in our table under this number
  auto sink = out_.process(pid);
  const auto used = used_by_.find(pid);
  if (used == used_by_.end()) return;
  for (const auto& [id, use] : used->second) {
    const auto& made = made_.at(id);
    if (made.owner == pid && !made.temporary && use.fd == made.fd) {
      here[id] = use.fd;
      if (use.close_on_exec) sink.add(SetCloseOnExec{use.fd, true});
    } else if (made.owner == pid || here.contains(id)) {
      sink.add(Dup2{here.contains(id) ? here[id] : made.fd, use.fd, use.close_on_exec});
      here.emplace(id, use.fd);
    } else {
      if (sources.insert(made.owner).second) out_.await_all(sink, opened_by(made.owner));
      sink.add(TransferFd{made.owner, pid, made.fd, use.fd, use.close_on_exec});
      here.emplace(id, use.fd);
    }
  }
  for (const Pid source : sources) out_.post(sink, taken_from(source));
}

void DescriptorPlan::close_temporaries(Pid pid) {
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
  return numbers;
}

}  // namespace stasis::plan
