// Which process makes which description, under which number, who inherits it, and who adds what epolls wait for. The
// commands that follow from that stand in descriptor_work.cc.
#include "plan/descriptors.h"

#include <fmt/format.h>

#include <algorithm>

namespace stasis::plan {

DescriptorPlan::DescriptorPlan(Emission& out, const CreationTree& tree) : out_(out), inheritance_(out, tree) {
  const auto& descriptions = out.application.descriptions;
  made_.reserve(descriptions.size());
  for (const auto& task : out.application.tasks) {
    if (task.state == model::TaskState::zombie || !table_worker_.emplace(task.descriptors, task.pid).second) continue;
    auto next = descriptions.begin();  // mostly ids ascend with the numbers
    auto& used = used_by_[task.pid];
    for (const auto& [fd, slot] : out.application.descriptor_tables.at(task.descriptors).slots) {
      if (next == descriptions.end() || next->first != slot.description) next = descriptions.find(slot.description);
      auto& made = known(*next++, task.pid, fd);
      made.uses.push_back({task.pid, fd, slot.close_on_exec});
      used.emplace_back(&made, made.uses.back());
    }
  }
  add_mapped_files();
  add_carried();
  find_inheritance();
  add_watchers();
  for (const auto& [id, description] : descriptions) {
    const auto made = description.starts_last ? made_.find(id) : made_.end();
    if (made != made_.end() && !made->second.uses.empty()) starters_[made->second.uses.front().pid].push_back(id);
  }
  add_lockers();
}

/// What belongs to a description is locked by the first that has it; if it is in flight, by its maker.
void DescriptorPlan::add_lockers() {
  for (const auto& [id, table] : out_.application.descriptor_tables) {
    const auto worker = table_worker_.find(id);
    if (worker == table_worker_.end()) continue;
    for (const auto& lock : table.locks) {
      const auto* holder = out_.tasks.find(lock.holder);
      const bool has_table =
          holder != nullptr && holder->state != model::TaskState::zombie && holder->descriptors == id;
      const int fd = number_in(worker->second, made_.at(lock.description));
      lockers_[has_table ? lock.holder : worker->second].emplace_back(&lock, fd);
    }
  }
  for (const auto& [id, description] : out_.application.descriptions) {
    const auto made = description.locks.empty() ? made_.end() : made_.find(id);
    if (made == made_.end() || made->second.uses.empty()) continue;
    const auto& use = made->second.uses.front();
    for (const auto& lock : description.locks) lockers_[use.pid].emplace_back(&lock, use.fd);
  }
}

/// What is known of a description; when it is new, `pid` makes it at `fd` (-1: at a passing number), or whoever makes
/// what has to be made together with it.
DescriptorPlan::Made& DescriptorPlan::known(const std::pair<const ObjectId, model::OpenDescription>& described, Pid pid,
                                            int fd) {
  const auto& [id, description] = described;
  const auto [entry, fresh] = made_.try_emplace(id);
  auto& made = entry->second;
  if (!fresh) return made;
  made.description = &description;
  made.id = id;
  made.owner = pid;
  made.fd = fd;
  made.temporary = fd < 0;
  made.maker = out_.maker(description);
  if (const auto given = out_.given().find(id); given != out_.given().end()) {
    made.given = true;
    made.fd = given->second;
    return made;
  }
  if (const Pid wanted = made.maker == nullptr ? Pid{} : made.maker->process(description); wanted.value != 0)
    referred_.insert(wanted);
  if (description.owner.kind == model::FileOwner::Kind::process) referred_.insert(Pid{description.owner.id});
  if (const Pid owner = maker_of(description, made.maker, pid); owner != pid) {
    made.owner = owner, made.temporary = true, made.fd = -1;
    groups_[owner].push_back({&made});
    return made;
  }
  const std::pair together(made.maker, made.maker != nullptr ? made.maker->made_together(description) : ObjectId{});
  const auto group = together.second.value == 0 ? group_of_.end() : group_of_.find(together);
  if (group == group_of_.end()) {
    if (together.second.value != 0) group_of_[together] = {pid, groups_[pid].size()};
    groups_[pid].push_back({&made});
    return made;
  }
  const auto [owner, index] = group->second;
  groups_[owner][index].push_back(&made);
  if (owner != pid) {  // somebody before us has the other end and makes this one for us
    made.owner = owner;
    made.temporary = true;
    made.fd = -1;
  }
  return made;
}

/// The holder, or, where only a process may make it that a certain terminal controls, the first such process.
Pid DescriptorPlan::maker_of(const model::OpenDescription& description, const DescriptionMaker* maker,
                             Pid holder) const {
  const uint64_t terminal = maker == nullptr ? 0 : maker->needs_terminal(out_.application, description);
  if (terminal == 0 || out_.tasks.find(holder)->controlling_terminal == terminal) return holder;
  std::set<ObjectId> seen;  // tables: the first of those who share one works on it
  for (const auto& task : out_.application.tasks) {
    if (task.state == model::TaskState::zombie || !seen.insert(task.descriptors).second) continue;
    if (task.controlling_terminal == terminal) return task.pid;
  }
  return holder;
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
      if (!out_.is_passed(description->second)) continue;
      need(mapping.file, table_worker_.at(task.descriptors));
    }
  }
}

/// What is carried has to be open where it is put into what carries it. It may carry something itself.
void DescriptorPlan::add_carried() {
  std::vector<ObjectId> carriers;
  for (const auto& [id, description] : out_.application.descriptions) {
    if (!description.carries.empty() && made_.contains(id)) carriers.push_back(id);
  }
  for (size_t i = 0; i < carriers.size(); ++i) {
    for (const ObjectId id : out_.application.descriptions.at(carriers[i]).carries) {
      if (!made_.contains(id)) carriers.push_back(id);
      need(id, made_.at(carriers[i]).owner);
    }
  }
}

void DescriptorPlan::add_watchers() {
  for (const auto& [id, description] : out_.application.descriptions) {
    const auto& watches = description.watches;
    const auto made = watches.empty() ? made_.end() : made_.find(id);
    if (made == made_.end()) continue;
    const Pid watcher = watcher_of(made->second, watches);
    watchers_[watcher].push_back(id);
    for (const auto& watch : watches) {
      const auto target = made_.find(watch.target);
      if (target == made_.end() || target->second.given || holds(watcher, target->second)) continue;
      target->second.borrowed = true;
      borrowed_by_[watcher].emplace(watch.target, -1);
    }
  }
}

void DescriptorPlan::need(ObjectId id, Pid pid) {
  auto& made = known(*out_.application.descriptions.find(id), pid, -1);
  if (made.needed_at.emplace(pid, -1).second) needed_by_[pid].push_back(&made);
}

void DescriptorPlan::find_inheritance() {
  for (auto& [owner, groups] : std::exchange(groups_, {})) {
    for (auto& group : groups) {
      const bool is_shared = std::ranges::any_of(group, [&](const Made* made) {
        return std::ranges::any_of(made->uses, [&](const Use& use) { return use.pid != owner; });
      });
      const auto bequest = is_shared && can_be_inherited(group) ? bequest_of(group) : std::nullopt;
      if (bequest)
        bequeath(group, *bequest);
      else
        groups_[owner].push_back(std::move(group));
    }
  }
}

std::optional<Bequest> DescriptorPlan::bequest_of(const Group& group) const {
  std::vector<HeldTogether> together;
  for (const Made* made : group) {
    auto& users = together.emplace_back().users;
    for (const auto& use : made->uses) users.insert(use.pid);
  }
  for (;;) {
    auto bequest = inheritance_.of(together);
    if (!bequest) return bequest;
    bool as_thought = true;
    for (size_t index = 0; index < group.size(); ++index) {
      auto& member = together[index];
      if (member.by_passing_number || common_number(*group[index], *bequest, index) >= 0) continue;
      member.by_passing_number = true;  // costs more: maybe others do better
      as_thought = false;
    }
    if (as_thought) return bequest;
  }
}

bool DescriptorPlan::can_be_inherited(const Group& group) {
  return std::ranges::all_of(group, [](const Made* made) {
    return made->maker != nullptr && made->maker->can_be_inherited(*made->description) && made->needed_at.empty() &&
           made->description->carries.empty();
  });
}

void DescriptorPlan::bequeath(const Group& group, const Bequest& bequest) {
  for (size_t member = 0; member < group.size(); ++member) {
    auto& made = *group[member];
    const auto& heirs = bequest.heirs[member];
    made.early = true;
    made.owner = bequest.owner;
    made.fd = common_number(made, bequest, member);
    made.temporary = made.fd < 0;
    if (made.temporary) made.fd = out_.temporary_fd();
    for (const Pid heir : heirs) legacies_[heir].insert(made.id);
  }
  bequests_[bequest.owner].push_back(group);
  groups_[bequest.owner].push_back(group);
}

/// Under which everybody who has it meanwhile has it in the end; -1: there is none. Then it is a passing number that
/// nobody uses.
int DescriptorPlan::common_number(const Made& made, const Bequest& bequest, size_t member) {
  const auto& heirs = bequest.heirs[member];
  const auto has = [&](Pid pid, int fd) {
    return std::ranges::any_of(made.uses, [&](const Use& use) { return use.pid == pid && use.fd == fd; });
  };
  for (const auto& use : made.uses) {
    if (use.pid != bequest.owner) continue;
    if (std::ranges::all_of(heirs, [&](Pid heir) { return has(heir, use.fd); })) return use.fd;
  }
  return -1;
}

/// Of those who hold the epoll the one that has most of what it waits for in its place: mostly the one who added it.
Pid DescriptorPlan::watcher_of(const Made& epoll, const std::vector<model::Watch>& watches) const {
  Pid best = epoll.owner;
  ptrdiff_t most = -1;
  for (const auto& use : epoll.uses) {
    const auto count = std::ranges::count_if(watches, [&](const auto& watch) { return is_in_place(use.pid, watch); });
    if (count > most) most = count, best = use.pid;
    if (static_cast<size_t>(most) == watches.size()) break;
  }
  return best;
}

bool DescriptorPlan::holds(Pid pid, const Made& made) {
  return made.owner == pid || std::ranges::find(made.uses, pid, &Use::pid) != made.uses.end();
}

int DescriptorPlan::number_in(Pid pid, const Made& made) {
  const auto use = std::ranges::find(made.uses, pid, &Use::pid);
  return use == made.uses.end() ? made.fd : use->fd;
}

bool DescriptorPlan::is_in_place(Pid pid, const model::Watch& watch) const {
  const auto& slots = out_.application.descriptor_tables.at(out_.tasks.find(pid)->descriptors).slots;
  const auto slot = slots.find(watch.fd);
  return slot != slots.end() && slot->second.description == watch.target;
}

bool DescriptorPlan::works_on_table(const model::Task& task) const {
  const auto found = table_worker_.find(task.descriptors);
  return found != table_worker_.end() && found->second == task.pid;
}

}  // namespace stasis::plan
