#include "plan/tree_history.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>
#include <set>

namespace stasis::plan {
namespace {

/// A model of the kernel's own, apart from the verifier's: each is a test of the other.
class History {
 public:
  explicit History(uint64_t seed) : random_(seed) {
    Fork fork;
    fork.child_pid = Pid{1};
    fork.new_pid_namespace = true;
    add(Pid{0}, fork);
    auto& init = born(Pid{1}, Pid{0});
    init.group = init.session = init.pid;
    add(init.pid, SetSid{});
  }

  TreeHistory run(unsigned operations) {
    for (unsigned i = 0; i < operations; ++i) operate();
    leave_zombies();
    for (auto& [pid, task] : tasks_) {
      if (task.state != model::TaskState::zombie) {
        for (const auto& thread : task.threads) history_.program.commands.push_back({pid, thread.tid, Ready{}});
      }
      history_.tree.tasks.push_back(task);
    }
    history_.tree.root = Pid{1};
    history_.tree.root_is_namespace_init = true;
    return std::move(history_);
  }

 private:
  using Task = model::Task;

  /// Below `limit`, the same everywhere: the library's distributions are not.
  size_t pick(size_t limit) { return static_cast<size_t>(random_() % limit); }

  Task& any() {
    auto at = tasks_.begin();
    std::advance(at, static_cast<ptrdiff_t>(pick(tasks_.size())));
    return at->second;
  }

  void operate() {
    Task& task = any();
    switch (pick(16)) {
      case 0:
      case 1:
        return set_sid(task);
      case 2:
      case 3:
      case 4:
        return set_group(task);
      case 5:
        return set_reaper(task);
      case 6:
        return add_thread(task);
      case 7:
      case 8:
      case 9:
        return exit(task);
      case 10:
        return clone(task);
      default:
        return fork(task);
    }
  }

  bool is_free(pid_t number) const {
    return std::ranges::none_of(tasks_, [&](const auto& entry) {
      const Task& task = entry.second;
      return task.pid.value == number || task.group.value == number || task.session.value == number ||
             std::ranges::find(task.threads, Tid{number}, &model::Thread::tid) != task.threads.end();
    });
  }
  /// Numbers that have become free are given again: they are the ones that confuse planners.
  pid_t fresh_number() {
    auto number = static_cast<pid_t>(2 + pick(2 * tasks_.size() + 4));
    while (!is_free(number)) ++number;
    return number;
  }

  Task& born(Pid pid, Pid parent) {
    Task& task = tasks_[pid];
    task.pid = pid, task.parent = parent;
    task.threads.emplace_back().tid = leader_of(pid);
    return task;
  }

  void create(const Task& creator, Pid pid, Pid parent) {
    const Pid group = creator.group, session = creator.session;
    Task& child = born(pid, parent);
    child.group = group, child.session = session;
  }
  void fork(const Task& task) {
    Fork fork;
    fork.child_pid = Pid{fresh_number()};
    add(task.pid, fork);
    create(task, fork.child_pid, task.pid);
  }
  void clone(const Task& task) {
    if (task.pid.value == 1) return;  // an init has no siblings (EINVAL)
    Clone clone;
    clone.child_pid = Pid{fresh_number()};
    add(task.pid, clone);
    create(task, clone.child_pid, task.parent);
  }

  void set_sid(Task& task) {
    const bool group_exists = std::ranges::any_of(tasks_, [&](const auto& e) { return e.second.group == task.pid; });
    if (task.session == task.pid || group_exists) return;
    add(task.pid, SetSid{});
    task.session = task.group = task.pid;
  }

  void set_group(Task& task) {
    if (task.session == task.pid) return;
    std::vector<Pid> groups{task.pid};
    for (const auto& [pid, other] : tasks_) {
      if (other.session == task.session) groups.push_back(other.group);
    }
    const Pid group = groups[pick(groups.size())];
    const Task& parent = tasks_.at(task.parent);
    const bool by_parent = pick(2) == 0 && parent.session == task.session;
    add(by_parent ? parent.pid : task.pid, SetPgid{task.pid, group});
    task.group = group;
  }

  void set_reaper(Task& task) {
    task.child_subreaper = !task.child_subreaper;
    add(task.pid, SetChildReaper{task.child_subreaper});
  }

  void add_thread(Task& task) {
    const Tid tid{fresh_number()};
    add(task.pid, StartThread{tid, {}});
    task.threads.emplace_back().tid = tid;
  }

  /// Ends and is waited for: what comes after an end nobody looks at would not be in any order.
  void exit(const Task& task) {
    if (task.pid.value == 1) return;
    const Pid pid = task.pid, parent = task.parent;
    Pid reaper = parent;
    while (reaper.value != 1 && !tasks_.at(reaper).child_subreaper) reaper = tasks_.at(reaper).parent;
    for (auto& [other, child] : tasks_) {
      if (child.parent == pid) child.parent = reaper;
    }
    take_turn(pid);
    take_turn(parent);  // who waits must know that it is its child
    history_.program.commands.push_back({pid, leader_of(pid), Exit{0}});
    history_.program.commands.push_back({parent, leader_of(parent), Wait{pid}});
    tasks_.erase(pid);
  }

  void leave_zombies() {
    std::set<Pid> parents;
    for (const auto& [pid, task] : tasks_) parents.insert(task.parent);
    for (auto& [pid, task] : tasks_) {
      if (pid.value == 1 || parents.contains(pid) || pick(4) != 0) continue;
      const int status = pick(2) == 0 ? 0 : static_cast<int>(pick(256)) << 8;
      const Pid before = last_;
      add(pid, Exit{status});
      last_ = before == pid ? Pid{0} : before;  // others do not wait for it
      task.state = model::TaskState::zombie;
      task.exit_status = status;
      task.threads.clear();
      task.child_subreaper = false;
    }
  }

  /// Whoever acts next waits for whoever acted before.
  void add(Pid pid, Action action) {
    take_turn(pid);
    history_.program.commands.push_back({pid, pid.value == 0 ? Tid{0} : leader_of(pid), std::move(action)});
  }
  void take_turn(Pid pid) {
    auto& commands = history_.program.commands;
    if (last_ != pid && last_.value != 0) {
      const auto turn = fmt::format("turn {}", ++turns_);
      commands.push_back({last_, leader_of(last_), Post{turn}});
      commands.push_back({pid, leader_of(pid), Await{turn, 1}});
    }
    last_ = pid;
  }

  std::mt19937_64 random_;
  TreeHistory history_;
  std::map<Pid, Task> tasks_;
  Pid last_;
  unsigned turns_ = 0;
};

}  // namespace

TreeHistory random_history(uint64_t seed, unsigned operations) { return History(seed).run(operations); }

}  // namespace stasis::plan
