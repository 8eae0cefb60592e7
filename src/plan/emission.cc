#include "plan/emission.h"

#include <fcntl.h>

namespace stasis::plan {

void Emission::reserve_numbers(const std::set<pid_t>& taken, pid_t first) {
  auto& own = numbers_[Pid{0}];
  for (const pid_t id : taken) {
    own.take(id);
    const auto& nested = spaces.nested(id);
    const auto line = spaces.line(spaces.of(id));
    for (size_t i = 0; i < line.size(); ++i) numbers_[line[i]].take(nested[i]);
  }
  if (first != 0) own.begin_at(first);
}

Tid Emission::parent_thread(const model::Task& task) const {
  const auto* parent = tasks.find(task.parent);
  if (parent == nullptr || task.parent_thread.value != 0) return task.parent_thread;
  return depends_on_parent_thread(tasks, task) ? parent->first_living()->tid : leader_of(task.parent);
}

void Emission::add_by(Pid pid, Tid tid, Action action) {
  if (tid == leader_of(pid)) return process(pid).add(std::move(action));
  start_threads(*tasks.find(pid), tid);
  const auto turn = fmt::format("turn {} of thread {}", ++turns_, tid), over = turn + " is over";
  auto sink = thread(pid, tid);
  post(process(pid), turn);
  await_all(sink, turn);
  sink.add(std::move(action));
  post(sink, over);
  await_all(process(pid), over);
}

Fork Emission::transient_in(Pid space) {
  Fork fork;
  fork.child_pid = Pid{numbers_[Pid{0}].take_one()};
  for (const Pid at : spaces.line(space)) fork.nested_pids.push_back(numbers_[at].take_one());
  return fork;
}

void Emission::open_root_pidfd(int first_fd) {
  if (!spaces.any()) return;
  root_pidfd_ = first_fd;
  process(application.root).add(OpenPidfd{application.root, root_pidfd_});
}

void Emission::open_terminals(int first_fd) {
  auto root = process(application.root);
  for (const auto& [terminal, about] : application.terminals) {
    OpenTerminal open{terminal, about.master, O_RDWR | O_NOCTTY | O_CLOEXEC, first_fd, -1};
    if (!about.path.empty()) open.master_fd = -1, open.path = about.path;
    if (about.slave_opened) open.slave_fd = first_fd + 1;
    first_fd += 2;
    if (const auto master = application.descriptions.find(about.master); master != application.descriptions.end()) {
      open.flags = (master->second.flags & O_ACCMODE) | O_NOCTTY | O_CLOEXEC;
      masters_[about.master] = open.master_fd;
    }
    terminals_[terminal] = {open.master_fd, open.slave_fd};
    root.add(open);
    for (const auto* maker : contributors.makers)
      maker->furnish_terminal(application, terminal, open.master_fd, open.slave_fd, root);
  }
}

void Emission::close_terminals(Pid pid) {
  for (const auto& [terminal, numbers] : terminals_) {
    if (numbers.master >= 0) process(pid).add(Close{numbers.master});
    if (numbers.slave >= 0) process(pid).add(Close{numbers.slave});
  }
}

void Emission::close_pidfds(Pid pid) {
  if (root_pidfd_ < 0) return;
  process(pid).add(Close{root_pidfd_});
  if (pid != application.root) return;
  for (const auto& [of, fd] : pidfds_) process(pid).add(Close{fd});
}

void Emission::inherit_given(int first_fd) {
  for (const auto& [id, description] : application.descriptions) {
    if (description.given < 0) continue;
    const int fd = first_fd + static_cast<int>(given_.size());
    process(Pid{0}).add(InheritFd{description.given, fd, id});
    given_.emplace(id, fd);
  }
}

void Emission::close_given(Pid pid) {
  for (const auto& [id, fd] : given_) process(pid).add(Close{fd});
}

int Emission::pidfd_in_root(Pid pid) {
  const auto [entry, fresh] = pidfds_.try_emplace(pid, root_pidfd_ + 1 + static_cast<int>(pidfds_.size()));
  if (!fresh) return entry->second;
  const auto born = fmt::format("{} can be named", pid);
  post(process(pid), born);
  take_table(application.root);
  await_all(process(application.root), born);
  process(application.root).add(OpenPidfd{pid, entry->second});
  post(process(application.root), fmt::format("pidfd of {}", pid));
  return entry->second;
}

void Emission::transfer(Pid from, Pid to, int fd, int target, bool close_on_exec) {
  if (spaces.contains(spaces.of(to), spaces.of(from)))
    return process(to).add(TransferFd{from, to, fd, target, close_on_exec});
  if (from == application.root) return process(to).add(TakeFd{root_pidfd_, fd, target, close_on_exec});
  const int there = pidfd_in_root(from), here = temporary_fd();
  take_table(to);
  await_all(process(to), fmt::format("pidfd of {}", from));
  process(to).add(TakeFd{root_pidfd_, there, here, true});
  process(to).add(TakeFd{here, fd, target, close_on_exec});
  process(to).add(Close{here});
}

}  // namespace stasis::plan
