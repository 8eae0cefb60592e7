#include "plan/tree_history.h"

#include <fmt/format.h>
#include <signal.h>

#include <map>
#include <random>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

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
    born(Pid{1}, Pid{0}, Pid{1}, Pid{1});
    add(Pid{1}, SetSid{});
  }

  TreeHistory run(unsigned operations) {
    for (unsigned i = 0; i < operations; ++i) operate();
    end_some();
    stop_some();
    for (auto& [pid, task] : tasks_) {
      if (task.state == model::TaskState::zombie) task.threads.clear();
      for (const auto& thread : task.threads) history_.program.commands.push_back({pid, thread.tid, Ready{}});
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

  void operate() {
    Task& task = tasks_.at(living_.any(*this));
    switch (pick(17)) {
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
        return reap_any();
      case 11:
        return clone(task);
      default:
        return fork(task);
    }
  }

  /// A list from which any can be drawn and any struck out at once.
  class Pids {
   public:
    void add(Pid pid) {
      place_[pid] = list_.size();
      list_.push_back(pid);
    }
    void remove(Pid pid) {
      const size_t at = place_.at(pid);
      place_[list_.back()] = at;
      list_[at] = list_.back();
      list_.pop_back();
      place_.erase(pid);
    }
    bool empty() const { return list_.empty(); }
    Pid any(History& history) const { return list_[history.pick(list_.size())]; }

   private:
    std::vector<Pid> list_;
    std::unordered_map<Pid, size_t> place_;
  };

  // ---- numbers

  /// As a pid or tid, group or session of anybody, zombies included.
  void use(pid_t number, int change) {
    if ((uses_[number] += change) == 0) uses_.erase(number);
  }
  void enter_session(const Task& task) {
    members_[task.session].add(task.pid);
    use(task.session.value, 1), use(task.group.value, 1);
  }
  void leave_session(const Task& task) {
    members_.at(task.session).remove(task.pid);
    use(task.session.value, -1), use(task.group.value, -1);
  }
  /// Numbers that have become free are given again: they are the ones that confuse planners.
  pid_t fresh_number() {
    auto number = static_cast<pid_t>(2 + pick(2 * tasks_.size() + 4));
    while (uses_.contains(number)) ++number;
    return number;
  }

  // ---- operations

  Task& born(Pid pid, Pid parent, Pid group, Pid session) {
    Task& task = tasks_[pid];
    task.pid = pid, task.parent = parent, task.group = group, task.session = session;
    task.threads.emplace_back().tid = leader_of(pid);
    use(pid.value, 1);
    enter_session(task);
    living_.add(pid);
    children_[parent].insert(pid);
    return task;
  }
  void fork(const Task& task) {
    Fork fork;
    fork.child_pid = Pid{fresh_number()};
    add(task.pid, fork);
    born(fork.child_pid, task.pid, task.group, task.session);
  }
  void clone(const Task& task) {
    if (task.pid.value == 1) return;  // an init has no siblings (EINVAL)
    Clone clone;
    clone.child_pid = Pid{fresh_number()};
    add(task.pid, clone);
    born(clone.child_pid, task.parent, task.group, task.session);
  }

  /// Nobody else can be in a group or session of its number that does not lead one.
  void set_sid(Task& task) {
    if (task.session == task.pid || uses_.at(task.pid.value) > 1) return;
    add(task.pid, SetSid{});
    leave_session(task);
    task.session = task.group = task.pid;
    enter_session(task);
  }

  void set_group(Task& task) {
    if (task.session == task.pid) return;
    const Pid member = members_.at(task.session).any(*this);
    const Pid group = pick(4) == 0 ? task.pid : tasks_.at(member).group;
    const Task& parent = tasks_.at(task.parent);
    const bool by_parent = pick(2) == 0 && parent.session == task.session;
    add(by_parent ? parent.pid : task.pid, SetPgid{task.pid, group});
    use(task.group.value, -1);
    task.group = group;
    use(task.group.value, 1);
  }

  void set_reaper(Task& task) {
    task.child_subreaper = !task.child_subreaper;
    add(task.pid, SetChildReaper{task.child_subreaper});
  }

  void add_thread(Task& task) {
    const Tid tid{fresh_number()};
    add(task.pid, StartThread{tid, {}});
    task.threads.emplace_back().tid = tid;
    use(tid.value, 1);
  }

  /// Who has children is waited for at once: nothing else would order what they do with their new parent. Others may
  /// stay zombies for a while.
  void exit(Task& task) {
    if (task.pid.value == 1) return;
    const bool stays = children_[task.pid].empty() && pick(2) == 0;
    become_zombie(task, 0);
    if (!stays) reap(task);
  }
  /// What comes after an end is in no order with it until the parent waits. So the parent has the turn from here on.
  void become_zombie(Task& task, int status) {
    const Pid pid = task.pid;
    take_turn(pid);
    take_turn(task.parent);
    history_.program.commands.push_back({pid, leader_of(pid), Exit{status}});
    for (const Pid child : std::exchange(children_[pid], {})) {
      auto& orphan = tasks_.at(child);
      orphan.parent = reaper_of(task);
      children_[orphan.parent].insert(child);
    }
    task.state = model::TaskState::zombie;
    task.exit_status = status;
    task.child_subreaper = false;
    living_.remove(pid);
    zombies_.add(pid);
  }
  Pid reaper_of(const Task& task) const {
    Pid reaper = task.parent;
    while (reaper.value != 1 && !tasks_.at(reaper).child_subreaper) reaper = tasks_.at(reaper).parent;
    return reaper;
  }
  void reap_any() {
    if (!zombies_.empty()) reap(tasks_.at(zombies_.any(*this)));
  }
  void reap(const Task& zombie) {
    const Pid pid = zombie.pid;
    add(zombie.parent, Wait{pid});
    use(pid.value, -1);
    for (const auto& thread : zombie.threads) {
      if (thread.tid != leader_of(pid)) use(thread.tid.value, -1);
    }
    leave_session(zombie);
    children_[zombie.parent].erase(pid);
    zombies_.remove(pid);
    tasks_.erase(pid);
  }

  // ---- the last operations

  void end_some() {
    for (auto& [pid, task] : tasks_) {
      const bool lives_on = pid.value == 1 || task.state == model::TaskState::zombie || !children_[pid].empty();
      if (!lives_on && pick(4) == 0) become_zombie(task, pick(2) == 0 ? 0 : static_cast<int>(pick(256)) << 8);
    }
  }
  /// No command does it: a restore's last step stops whoever is to be.
  void stop_some() {
    for (auto& [pid, task] : tasks_) {
      if (task.state != model::TaskState::zombie && pick(8) == 0)
        task.state = model::TaskState::stopped, task.stop_signal = SIGSTOP;
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
  Pids living_, zombies_;
  std::unordered_map<Pid, Pids> members_;  ///< of sessions
  std::unordered_map<Pid, std::set<Pid>> children_;
  std::unordered_map<pid_t, int> uses_;
  Pid last_;
  unsigned turns_ = 0;
};

}  // namespace

TreeHistory random_history(uint64_t seed, unsigned operations) { return History(seed).run(operations); }

}  // namespace stasis::plan
