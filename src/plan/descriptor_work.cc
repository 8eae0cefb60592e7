// The commands by which descriptions are made, inherited, taken, watched, started and locked.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>

#include "plan/descriptors.h"

namespace stasis::plan {
namespace {

std::string opened_by(Pid pid) { return fmt::format("opened by {}", pid); }
std::string taken_from(Pid pid) { return fmt::format("taken from {}", pid); }
std::string borrowed_from(Pid pid) { return fmt::format("borrowed from {}", pid); }
std::string is_there(Pid pid) { return fmt::format("{} is there", pid); }

/// F_SETOWN_EX records the caller's ids as those of the sender, which decide whether a signal reaches a process of
/// another user (fs/fcntl.c, f_setown_ex, sigio_perm): the caller takes the original ones for the moment, where it may.
/// To change ids costs a process its death signal and its dumpable flag (kernel/cred.c, commit_creds).
Calls as_setter(const model::FileOwner& owner, Call set_owner) {
  if (owner.uid == 0 && owner.euid == 0) return {std::move(set_owner)};  // what whoever may take ids has anyway
  constexpr uint32_t kept = ~0u;
  constexpr auto may_fail = Expectation::Kind::success_or;
  return {call(SYS_prctl, PR_GET_PDEATHSIG, Out{sizeof(int)}),
          call(SYS_prctl, PR_GET_DUMPABLE),
          call(SYS_getuid),
          call(SYS_geteuid),
          expecting(call(SYS_setresuid, owner.uid, owner.euid, kept), may_fail, -EPERM),
          std::move(set_owner),
          call(SYS_setresuid, ResultOf{-4}, ResultOf{-3}, kept),
          call(SYS_prctl, PR_SET_PDEATHSIG, WordOf{-7, 0}),
          call(SYS_prctl, PR_SET_DUMPABLE, ResultOf{-7})};
}

/// `id` is the owner as the caller's pid namespace has it.
Calls owner_calls(int fd, const model::FileOwner& owner, pid_t id) {
  Calls calls;
  if (owner.kind != model::FileOwner::Kind::none) {
    const int type = owner.kind == model::FileOwner::Kind::thread    ? F_OWNER_TID
                     : owner.kind == model::FileOwner::Kind::process ? F_OWNER_PID
                                                                     : F_OWNER_PGRP;
    calls =
        as_setter(owner, call(SYS_fcntl, fd, F_SETOWN_EX, struct_in(f_owner_ex{static_cast<__pid_type>(type), id})));
  }
  if (owner.signal != 0) calls.push_back(call(SYS_fcntl, fd, F_SETSIG, owner.signal));
  return calls;
}

}  // namespace

Status DescriptorPlan::make_group(Pid pid, const Group& group) {
  std::vector<Placement> placements;
  const int first_scratch = out_.first_temporary();
  bool keeps_numbers = false;
  for (Made* const member : group) {
    auto& made = *member;
    const auto& description = *made.description;
    keeps_numbers = keeps_numbers || (made.temporary && !made.early) || !description.carries.empty();
    if (made.maker == nullptr) {
      return fail(Error::internal("plan descriptors",
                                  fmt::format("nobody makes files of kind {}", description.state.value->kind())));
    }
    // The owner may hold it, too, under numbers of its own: those are copies.
    if (made.temporary && !made.early) made.fd = out_.temporary_fd();
    placements.push_back(out_.placement(description, made.fd));
    made.scratch = placements.back().scratch;
  }
  auto sink = out_.process(pid);
  const auto& maker = *group.front()->maker;
  const auto& first = *placements.front().description;
  if (const Pid needed = maker.process(first); needed.value != 0 && needed != pid)
    out_.await_all(sink, is_there(needed));
  const auto ended = maker.ended_process(first);
  Pid child;
  if (ended) {
    const Fork passing = out_.transient(pid);
    child = passing.child_pid;
    sink.add(passing);
    for (auto& placement : placements) {
      placement.process = child;
      placement.process_number = passing.nested_pids.empty() ? child.value : passing.nested_pids.back();
    }
  }
  TRY(maker.make(out_.application, placements, sink));
  // Thousands of groups would run out of numbers (RLIMIT_NOFILE).
  if (!keeps_numbers) out_.set_first_temporary(first_scratch);
  if (ended) {
    out_.process(child).add(Exit{*ended});
    sink.add(Wait{child});
    out_.bereaved.insert(pid);
  }
  return {};
}

void DescriptorPlan::end_repairs() {
  auto sink = out_.process(Pid{0});
  for (const auto& [id, description] : out_.application.descriptions) {
    const auto made = description.in_repair ? made_.find(id) : made_.end();
    if (made == made_.end() || made->second.uses.empty()) continue;
    const auto& use = made->second.uses.front();
    sink.add(EndRepair{use.pid, use.fd, id, made->second.maker->reuses_address(description)});
  }
}

Status DescriptorPlan::set_state(Pid pid, const Made& made) {
  const auto& description = *made.description;
  auto sink = out_.process(pid);
  if (made.maker->seekable() && description.position != 0 && !made.given)
    sink.add(Lseek{made.fd, description.position});
  const auto& owner = description.owner;
  const pid_t id = out_.spaces.number(owner.id, out_.spaces.of(pid));
  auto calls = owner_calls(made.fd, owner, id);
  const bool is_born_late = owner.kind == model::FileOwner::Kind::thread || owner.kind == model::FileOwner::Kind::group;
  if (is_born_late && id != 0 && !made.uses.empty() && made.uses.front().pid == pid)
    late_owners_[pid].emplace_back(&owner, made.uses.front().fd);
  else if (!calls.empty() && (id != 0 || owner.kind == model::FileOwner::Kind::none))
    set_owner(pid, fmt::format("owner of descriptor {}", made.fd), owner, std::move(calls));
  else if (!calls.empty())
    set_owner_outside(pid, made.fd, owner);
  if (!made.uses.empty()) return {};
  // In flight: nobody has it later.
  if (description.starts_last) made.maker->start(out_.application, description, made.fd, sink);
  for (const auto& lock : description.locks) TRY(take_lock(pid, made.fd, lock));
  return {};
}

/// An owner must exist when it is named (fs/fcntl.c, f_setown_ex).
void DescriptorPlan::set_owner(Pid by, const std::string& purpose, const model::FileOwner& owner, Calls calls) {
  Perform perform{.purpose = purpose};
  perform.calls = std::move(calls);
  const Pid process{owner.id};
  if (owner.kind == model::FileOwner::Kind::process && process != by && out_.tasks.find(process) != nullptr) {
    out_.await_all(out_.process(by), is_there(process));
    perform.processes.push_back(process);
  }
  out_.process(by).add(std::move(perform));
}

/// What the supervisor gives is as it is, but for what only those who use it need: whether calls wait, and who gets
/// signals.
Status DescriptorPlan::adopt(Pid pid, const Made& made) {
  constexpr uint32_t settable = O_APPEND | O_NONBLOCK | O_ASYNC;
  out_.process(pid).perform(fmt::format("status flags of descriptor {}", made.fd), "",
                            {call(SYS_fcntl, made.fd, F_SETFL, made.description->flags & settable)});
  return set_state(pid, made);
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
  set_owner(root, fmt::format("owner of descriptor {} of {}", fd, pid), owner, owner_calls(taken, owner, owner.id));
  sink.add(Close{taken});
  out_.post(sink, taken_from(pid));
  out_.take_table(pid);
}

Status DescriptorPlan::born(Pid pid, Pid creator) {
  if (referred_.contains(pid)) out_.post(out_.process(pid), is_there(pid));
  inherit(pid, creator);
  const auto bequests = bequests_.find(pid);
  if (bequests == bequests_.end()) return {};
  for (const auto& group : bequests->second) {
    TRY(make_group(pid, group));
    for (const Made* made : group) inherited_[pid].emplace(made->id, made->fd);
  }
  return {};
}

void DescriptorPlan::inherit(Pid pid, Pid creator) {
  const auto above = inherited_.find(creator);
  if (above == inherited_.end() || !inheritance_.closes(pid)) return;
  const auto wanted = legacies_.find(pid);
  auto sink = out_.process(pid);
  for (const auto& [id, fd] : above->second) {
    if (wanted != legacies_.end() && wanted->second.contains(id))
      inherited_[pid].emplace(id, fd);
    else
      sink.add(Close{fd});
  }
}

bool DescriptorPlan::is_heir(Pid pid, ObjectId id) const {
  const auto known = inherited_.find(pid);
  return known != inherited_.end() && known->second.contains(id);
}

Status DescriptorPlan::make(Pid pid) {
  const auto groups = groups_.find(pid);
  if (groups == groups_.end()) return {};
  for (const auto& group : groups->second) {
    if (!group.front()->early) TRY(make_group(pid, group));
    for (const Made* made : group) {
      TRY(set_state(pid, *made));
      duplicate_here(pid, *made);
    }
  }
  bool wanted_elsewhere = false;
  for (const auto& group : groups->second) {
    for (const Made* made : group) {
      for (const auto& use : made->uses)
        wanted_elsewhere = wanted_elsewhere || (use.pid != pid && !is_heir(use.pid, made->id));
      for (const auto& [user, fd] : made->needed_at) wanted_elsewhere = wanted_elsewhere || user != pid;
      wanted_elsewhere = wanted_elsewhere || made->borrowed;
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

Status DescriptorPlan::take(Pid pid) {
  std::set<Pid> sources;
  std::unordered_map<ObjectId, int> here;  // already in our table under this number
  auto sink = out_.process(pid);
  const auto transfer = [&](const Made& made, int to, bool close_on_exec) {
    if (sources.insert(made.owner).second) out_.await_all(sink, opened_by(made.owner));
    out_.transfer(made.owner, pid, made.fd, to, close_on_exec);
  };
  const auto inherited = inherited_.find(pid);
  std::map<ObjectId, int> passing;  ///< inherited under numbers that are not the final ones
  if (inherited != inherited_.end()) {
    for (const auto& [id, fd] : inherited->second) {
      if (made_.at(id).owner == pid) continue;
      if (made_.at(id).temporary) passing.emplace(id, fd);
      here.emplace(id, fd);
    }
  }
  for (const auto& [used, use] : used_by_[pid]) {
    const auto& made = *used;
    const ObjectId id = made.id;
    if (made.given) {
      if (made.owner == pid && !here.contains(id)) TRY(adopt(pid, made));
      sink.add(Dup2{made.fd, use.fd, use.close_on_exec});
    } else if (const auto known = here.find(id); known != here.end() && known->second == use.fd) {
      if (use.close_on_exec) sink.add(SetCloseOnExec{use.fd, true});
    } else if (made.owner == pid && !made.temporary) {  // made here, and duplicated
      if (use.fd == made.fd && use.close_on_exec) sink.add(SetCloseOnExec{use.fd, true});
    } else if (made.owner == pid || here.contains(id)) {
      sink.add(Dup2{here.contains(id) ? here[id] : made.fd, use.fd, use.close_on_exec});
    } else {
      transfer(made, use.fd, use.close_on_exec);
    }
    if (made.uses.size() > 1 || !made.needed_at.empty()) here.emplace(id, use.fd);  // may be asked for again
  }
  for (Made* const needed : needed_by_[pid]) {
    auto& made = *needed;
    if (here.contains(made.id)) continue;
    int& at = made.needed_at.at(pid);
    at = made.owner == pid || made.given ? made.fd : out_.temporary_fd();
    if (made.owner != pid && !made.given) transfer(made, at, true);
  }
  for (const auto& [id, fd] : passing) sink.add(Close{fd});
  for (const Pid source : sources) out_.post(sink, taken_from(source));
  return {};
}

Status DescriptorPlan::complete(Pid pid) {
  const auto groups = groups_.find(pid);
  if (groups == groups_.end()) return {};
  for (const auto& group : groups->second) {
    if (std::ranges::all_of(group, [](const Made* made) { return made->description->carries.empty(); })) continue;
    std::vector<Placement> placements;
    for (const Made* made : group) placements.push_back({made->description, made->fd, made->scratch});
    auto sink = out_.process(pid);
    TRY(group.front()->maker->complete(out_.application, placements, open_in(pid), sink));
  }
  return {};
}

void DescriptorPlan::borrow(Pid pid) {
  const auto wanted = borrowed_by_.find(pid);
  if (wanted == borrowed_by_.end()) return;
  auto sink = out_.process(pid);
  std::set<Pid> sources;
  for (auto& [id, fd] : wanted->second) {
    const auto& made = made_.at(id);
    fd = out_.temporary_fd();
    if (sources.insert(made.owner).second) out_.await_all(sink, opened_by(made.owner));
    out_.transfer(made.owner, pid, made.fd, fd, true);
  }
  for (const Pid source : sources) out_.post(sink, borrowed_from(source));
}

void DescriptorPlan::watch(Pid pid) {
  const auto epolls = watchers_.find(pid);
  if (epolls == watchers_.end()) return;
  auto sink = out_.process(pid);
  for (const ObjectId id : epolls->second) {
    const int epoll = number_in(pid, made_.at(id));
    auto watches = out_.application.descriptions.at(id).watches;
    std::ranges::stable_partition(watches, has_fired, &model::Watch::events);  // EpollAdd
    for (const auto& watch : watches) {
      if (is_in_place(pid, watch))
        sink.add(EpollAdd{epoll, watch.fd, watch.events, watch.data});
      else if (made_.contains(watch.target))
        watch_out_of_place(pid, watch, epoll);
    }
  }
  for (const auto& [id, fd] : borrowed_by_[pid]) sink.add(Close{fd});
}

/// Its number has been closed since, or given to something else, which steps aside for a moment.
void DescriptorPlan::watch_out_of_place(Pid pid, const model::Watch& watch, int epoll) {
  auto sink = out_.process(pid);
  const auto borrowed = borrowed_by_[pid].find(watch.target);
  const int source = borrowed != borrowed_by_[pid].end() ? borrowed->second : number_in(pid, made_.at(watch.target));
  const auto& slots = out_.application.descriptor_tables.at(out_.tasks.find(pid)->descriptors).slots;
  const auto other = slots.find(watch.fd);
  const int aside = other == slots.end() ? -1 : out_.temporary_fd();
  if (aside >= 0) {
    out_.await_all(sink, taken_from(pid));
    out_.await_all(sink, borrowed_from(pid));
    sink.add(Dup2{watch.fd, aside, true});
    sink.add(Close{watch.fd});
  }
  sink.add(Dup2{source, watch.fd, true});
  sink.add(EpollAdd{epoll == watch.fd ? aside : epoll, watch.fd, watch.events, watch.data});
  sink.add(Close{watch.fd});
  if (aside >= 0) {
    sink.add(Dup2{aside, watch.fd, other->second.close_on_exec});
    sink.add(Close{aside});
  }
}

void DescriptorPlan::start(Pid pid) {
  for (const auto& [owner, fd] : late_owners_[pid]) {
    const pid_t id = out_.spaces.number(owner->id, out_.spaces.of(pid));
    set_owner(pid, fmt::format("owner of descriptor {}", fd), *owner, owner_calls(fd, *owner, id));
  }
  const auto started = starters_.find(pid);
  if (started == starters_.end()) return;
  auto sink = out_.process(pid);
  for (const ObjectId id : started->second) {
    const auto& made = made_.at(id);
    made.maker->start(out_.application, out_.application.descriptions.at(id), number_in(pid, made), sink);
  }
}

void DescriptorPlan::close_temporaries(Pid pid) {
  for (const Made* made : needed_by_[pid]) {
    if (made->needed_at.at(pid) >= 0 && made->owner != pid && !made->given)
      out_.process(pid).add(Close{made->needed_at.at(pid)});
  }
  const auto groups = groups_.find(pid);
  if (groups == groups_.end()) return;
  bool waited = false;
  for (const auto& group : groups->second) {
    for (const Made* made : group) {
      if (!made->temporary) continue;
      if (!waited) {
        out_.await_all(out_.process(pid), taken_from(pid));
        out_.await_all(out_.process(pid), borrowed_from(pid));
      }
      waited = true;
      out_.process(pid).add(Close{made->fd});
    }
  }
}

OpenNumbers DescriptorPlan::open_in(Pid user) const {
  const Pid pid = table_worker_.at(out_.tasks.find(user)->descriptors);
  return [this, pid](ObjectId id) -> std::optional<int> {
    const auto known = made_.find(id);
    if (known == made_.end()) return std::nullopt;
    const auto& made = known->second;
    if (const auto use = std::ranges::find(made.uses, pid, &Use::pid); use != made.uses.end()) return use->fd;
    const auto needed = made.needed_at.find(pid);
    return needed != made.needed_at.end() && needed->second >= 0 ? std::optional(needed->second) : std::nullopt;
  };
}

/// Among tasks that share a table the one that works on it closes what is left over before any of them takes a lock.
Status DescriptorPlan::lock(const model::Task& task) {
  const auto is_final = [&] { return fmt::format("table {} is final", task.descriptors); };
  if (out_.shares_table(task.pid) && works_on_table(task)) out_.post(out_.process(task.pid), is_final());
  const auto locks = lockers_.find(task.pid);
  if (locks == lockers_.end()) return {};
  if (!works_on_table(task)) out_.await_all(out_.process(task.pid), is_final());
  for (const auto& [lock, fd] : locks->second) TRY(take_lock(task.pid, fd, *lock));
  return {};
}

Status DescriptorPlan::take_lock(Pid pid, int fd, const model::FileLock& lock) {
  const auto& description = out_.application.descriptions.at(lock.description);
  const bool read_only = (description.flags & O_ACCMODE) == O_RDONLY;
  auto sink = out_.process(pid);
  sink.add(Lock{fd, std::string(name_of(lock.kind)), std::string(name_of(lock.type)), lock.breaking, read_only,
                lock.start, lock.length, description.state.value->describe()});
  const auto& owner = description.owner;
  if (lock.kind != model::FileLock::Kind::lease || owner.kind == model::FileOwner::Kind::none) return {};
  const pid_t id = out_.spaces.number(owner.id, out_.spaces.of(pid));
  if (id == 0) {
    return fail(Error::unsupported("plan descriptors",
                                   fmt::format("the owner of the lease on {} is outside of the holder's pid namespace",
                                               description.state.value->describe())));
  }
  sink.perform(fmt::format("owner of descriptor {}", fd), "", owner_calls(fd, owner, id));
  return {};
}

}  // namespace stasis::plan
