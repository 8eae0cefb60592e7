// Descriptor tables, and what epolls wait for.
#include <fcntl.h>

#include <algorithm>
#include <memory>
#include <set>
#include <vector>

#include "plan/verify_interpreter.h"

namespace stasis::plan::verifier {
namespace {

OpenSlot copied(OpenSlot slot, bool close_on_exec) {
  slot.close_on_exec = close_on_exec;
  return slot;
}

}  // namespace

std::shared_ptr<Table> Interpreter::copied_table() {
  touch_table();
  auto copy = std::make_shared<Table>();
  for (const auto& [fd, slot] : now_->table->slots) {
    // Of what is stasis' own the executor keeps the images, and what is given.
    if (now_->pid.value != 0 || fd == program_.images_fd || slot.inherited) copy->slots[fd] = slot;
  }
  return copy;
}

void Interpreter::touch_table() {
  if (now_->table.use_count() > 1) writes(now_->table->turn, "the descriptor table that it shares");
}

OpenSlot* Interpreter::open_slot(int fd) {
  const auto found = now_->table->slots.find(fd);
  require(found != now_->table->slots.end(), "descriptor {} is not open (EBADF)", fd);
  if (!problem_) reads(now_->table->uses[fd], "descriptor {}", fd);
  return problem_ ? nullptr : &found->second;
}

void Interpreter::put(int fd, OpenSlot slot) {
  require(fd >= 0, "descriptor {} is out of range (EBADF)", fd);
  touch_table();
  auto& [slots, uses, turn] = *now_->table;  // they come mostly in ascending order
  writes(uses.try_emplace(uses.end(), fd)->second, "descriptor {}", fd);
  if (problem_) return;
  const size_t before = slots.size();
  slots.try_emplace(slots.end(), fd, slot);
  require(slots.size() != before, "descriptor {} is open already and would be closed silently", fd);
}

void Interpreter::makes(ObjectId id) {
  require(!given_.contains(id), "a descriptor of stasis is to take the place of {}, which is made anew", id);
}

void Interpreter::apply(const InheritFd& inherit) {
  const auto description = wanted_.descriptions.find(inherit.description);
  require(now_->pid.value == 0, "only stasis itself can give a descriptor of its own");
  require(inherit.own_fd >= 0, "descriptor {} is out of range (EBADF)", inherit.own_fd);
  require(description != wanted_.descriptions.end() && description->second.given == inherit.own_fd,
          "descriptor {} of stasis is not to take the place of {}", inherit.own_fd, inherit.description);
  if (!problem_) put(inherit.fd, {.description = inherit.description, .inherited = true});
}

void Interpreter::apply(const Open& open) {
  makes(open.description);
  require(std::ranges::all_of(leases_, certain()), "it may break a lease that is taken at that time");
  if (now_->pid.value != 0) reads(files_, "what the supervisor makes in the file system");
  put(open.fd, {open.description, (open.flags & O_CLOEXEC) != 0});
}

void Interpreter::apply(const Close& close) {
  if (open_slot(close.fd) == nullptr) return;
  touch_table();
  const auto* task = tasks_wanted_.find(now_->pid);
  require(task == nullptr || !locks_.has_posix_locks(task->descriptors),
          "to close a descriptor may release posix locks of its table: it may be one of the same file");
  writes(now_->table->uses[close.fd], "descriptor {}", close.fd);
  now_->table->slots.erase(close.fd);
}

void Interpreter::apply(const Dup2& dup) {
  require(dup.old_fd != dup.new_fd, "dup3 refuses equal numbers (EINVAL)");
  if (const auto* slot = open_slot(dup.old_fd)) put(dup.new_fd, copied(*slot, dup.close_on_exec));
}

void Interpreter::apply(const SetCloseOnExec& set) {
  if (auto* slot = open_slot(set.fd)) slot->close_on_exec = set.value;
}

void Interpreter::apply(const Lseek& seek) {
  if (const auto* slot = open_slot(seek.fd)) positions_[slot->description] = seek.offset;
}

void Interpreter::apply(const TransferFd& transfer) {
  const auto from = processes_.find(transfer.from_pid);
  require(transfer.to_pid == now_->pid, "only the receiver can take a descriptor");
  require(from != processes_.end() && from->second.alive && !from->second.leader_status,
          "{} does not exist, or its first thread has ended (ESRCH)", transfer.from_pid);
  require(problem_ || spaces_.sees(now_->pid_space, transfer.from_pid.value),
          "{} is outside of its pid namespace (ESRCH)", transfer.from_pid);
  if (!problem_) take(from->second, transfer.fd, transfer.target_fd, transfer.close_on_exec);
}

void Interpreter::apply(const OpenPidfd& open) {
  if (named(open.target) != nullptr) put(open.fd, {.pidfd_of = open.target});
}

void Interpreter::apply(const TakeFd& take_fd) {
  const auto* pidfd = open_slot(take_fd.pidfd);
  require(pidfd == nullptr || pidfd->pidfd_of.value != 0, "descriptor {} is no pidfd (EBADF)", take_fd.pidfd);
  if (pidfd == nullptr || problem_) return;
  auto& from = processes_.at(pidfd->pidfd_of);
  require(from.alive && !from.leader_status, "{} does not exist any more, or its first thread has ended (ESRCH)",
          from.pid);
  if (!problem_) take(from, take_fd.fd, take_fd.target_fd, take_fd.close_on_exec);
}

void Interpreter::take(Process& from, int fd, int target_fd, bool close_on_exec) {
  const auto slot = from.table->slots.find(fd);
  require(slot != from.table->slots.end(), "{} has no descriptor {} (EBADF)", from.pid, fd);
  if (problem_) return;
  reads(from.table->uses[fd], "descriptor {} of {}", fd, from.pid);
  for (auto& [tid, state] : from.reachable) reads(state, "access to the descriptors of {}", from.pid);
  if (!problem_) put(target_fd, copied(slot->second, close_on_exec));
}

void Interpreter::apply(const EpollAdd& add) {
  const auto *epoll = open_slot(add.epoll_fd), *target = open_slot(add.fd);
  if (problem_) return;
  require(epoll->description != target->description, "an epoll cannot wait for itself (EINVAL)");
  require(!leads_to(target->description, epoll->description), "epolls would wait for each other (ELOOP)");
  auto& watches = watches_[epoll->description];
  const bool fresh = watches.emplace(std::pair(target->description, add.fd), std::pair(add.events, add.data)).second;
  require(fresh, "the epoll waits for descriptor {} already (EEXIST)", add.fd);
  const bool in_order = !has_fired(add.events) ||
                        std::ranges::all_of(watches, [](const auto& other) { return has_fired(other.second.first); });
  require(in_order, "what is waited for already could fire in its place");
}

void Interpreter::apply(const Lock& lock) {
  const auto* slot = open_slot(lock.fd);
  if (extent_ == Extent::tree) return;
  const auto* task = tasks_wanted_.find(now_->pid);
  require(task != nullptr, "the process is not part of the application: its locks end with it");
  if (problem_) return;
  // An open at the same time may break a lease, or make it impossible (EAGAIN).
  if (lock.kind == name_of(model::FileLock::Kind::lease)) {
    require(files_.is_quiet(certain()), "files may be opened by another process at that time");
    leases_.push_back(stamp());
  }
  if (problem_) return;
  obey(locks_.record(wanted_, lock, slot->description, task->descriptors, now_->pid));
  // Several may take locks at the same time, but nobody opens or closes anything of the table then.
  if (now_->table.use_count() > 1) reads(now_->table->turn, "the descriptor table that it shares");
}

bool Interpreter::leads_to(ObjectId from, ObjectId to) const {
  std::set<ObjectId> seen;
  for (std::vector<ObjectId> open{from}; !open.empty();) {
    const auto watches = watches_.find(open.back());
    open.pop_back();
    if (watches == watches_.end()) continue;
    for (const auto& [target, what] : watches->second) {
      if (target.first == to) return true;
      if (seen.insert(target.first).second) open.push_back(target.first);
    }
  }
  return false;
}

void Interpreter::complete(const Created& completed) {
  const auto* slot = open_slot(completed.fd);
  if (slot == nullptr) return;
  require(slot->description == completed.description, "descriptor {} refers to {} instead of {}", completed.fd,
          slot->description, completed.description);
  const auto description = wanted_.descriptions.find(completed.description);
  require(description != wanted_.descriptions.end() && !description->second.carries.empty(),
          "{} carries nothing to complete it with", completed.description);
  require(completed_.insert(completed.description).second, "{} is complete already", completed.description);
  if (problem_) return;
  for (const ObjectId carried : description->second.carries) {
    const auto open =
        std::ranges::find(now_->table->slots, carried, [](const auto& entry) { return entry.second.description; });
    require(open != now_->table->slots.end(), "{}, which {} carries, is not open here (EBADF)", carried,
            completed.description);
    if (!problem_) reads(now_->table->uses[open->first], "descriptor {}", open->first);
  }
}

}  // namespace stasis::plan::verifier
