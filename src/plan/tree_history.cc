#include "plan/tree_history.h"

#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "model/pid_namespaces.h"

namespace stasis::plan {
namespace {

/// A model of the kernel's own, apart from the verifier's: each is a test of the other.
class History {
 public:
  History(uint64_t seed, bool pid_namespaces, bool terminals)
      : pid_namespaces_(pid_namespaces), terminals_(terminals), random_(seed) {
    Fork fork;
    fork.child_pid = Pid{1};
    fork.new_pid_namespace = true;
    add(Pid{0}, fork);
    born(Pid{1}, Pid{0}, {Pid{0}, {}}, Pid{1}, Pid{1});
    add(Pid{1}, SetSid{});
  }

  TreeHistory run(unsigned operations) {
    for (unsigned i = 0; i < operations; ++i) operate();
    end_some();
    stop_some();
    for (auto& [pid, task] : tasks_) {
      if (pid.value != 1 && is_init(task) && above_.at(pid) != tasks_.at(task.parent).pid_namespace)
        task.outer_namespace = above_.at(pid);
      if (task.state == model::TaskState::zombie) task.threads.clear();
      for (const auto& thread : task.threads) history_.program.commands.push_back({pid, thread.tid, Ready{}});
      history_.tree.tasks.push_back(task);
    }
    history_.tree.root = Pid{1};
    history_.tree.root_is_namespace_init = true;
    note_dead_leaders();
    note_terminals();
    return std::move(history_);
  }

 private:
  using Task = model::Task;

  /// Below `limit`, the same everywhere: the library's distributions are not.
  size_t pick(size_t limit) { return static_cast<size_t>(random_() % limit); }

  void operate() {
    Task& task = tasks_.at(living_.any(*this));
    constexpr size_t without_terminals = 17, all = 21;
    switch (pick(terminals_ ? all : without_terminals)) {
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
      case without_terminals:
      case without_terminals + 1:
        return acquire_terminal(task);
      case without_terminals + 2:
        return leave_terminal(task);
      case without_terminals + 3:
        return change_foreground(task);
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
    int& uses = uses_[number];
    uses += change;
    if (uses != 0) return;
    uses_.erase(number);
    // The next of this number is another group to a terminal.
    for (auto& [session, group] : foregrounds_) {
      if (group.value == number) group = Pid{};
    }
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

  // ---- nested pid namespaces, each named by its init

  struct Place {
    Pid space;
    std::vector<pid_t> nested;
  };
  /// From the outermost to `space`.
  std::vector<Pid> line(Pid space) const {
    std::vector<Pid> spaces;
    for (Pid at = space; at.value != 0; at = above_.at(at)) spaces.push_back(at);
    std::ranges::reverse(spaces);
    return spaces;
  }
  bool contains(Pid outer, Pid inner) const {
    const auto spaces = line(inner);
    return outer.value == 0 || std::ranges::find(spaces, outer) != spaces.end();
  }
  bool is_init(const Task& task) const { return task.pid.value == 1 || task.pid_namespace == task.pid; }
  /// The end of an init would be that of all in its namespace, and waits until no ids but its own are left there
  /// (kernel/pid_namespace.c, zap_pid_ns_processes): those of groups, too, that others are in, or the init itself.
  bool may_end(const Task& task) const { return task.pid.value != 1 && (!is_init(task) || is_alone(task)); }
  bool is_alone(const Task& init) const {
    return std::ranges::none_of(places_, [&](const auto& entry) {
      const auto& [id, place] = entry;
      return uses_.contains(id) && contains(init.pid, place.space) && !is_own(init, id);
    });
  }
  static bool is_own(const Task& task, pid_t id) {
    return std::ranges::any_of(task.threads, [&](const auto& thread) { return thread.tid.value == id; });
  }
  /// A new id's numbers in the namespaces from the outermost to `space`.
  std::vector<pid_t> take_place(pid_t id, Pid space) {
    std::erase_if(places_, [&](const auto& entry) { return !uses_.contains(entry.first); });
    const auto spaces = line(space);
    std::vector<pid_t> nested;
    for (size_t i = 0; i < spaces.size(); ++i) {
      std::set<pid_t> taken;
      for (const auto& [other, place] : places_) {
        if (contains(spaces[i], place.space)) taken.insert(place.nested[i]);
      }
      pid_t number = spaces[i].value == id ? 1 : static_cast<pid_t>(2 + pick(taken.size() + 3));
      while (taken.contains(number)) ++number;
      nested.push_back(number);
    }
    if (!spaces.empty()) places_[id] = {space, nested};
    return nested;
  }
  bool can_name(const Task& task, Pid id) const {
    const auto place = places_.find(id.value);
    return contains(task.pid_namespace, place == places_.end() ? Pid{} : place->second.space);
  }
  void note_dead_leaders() {
    auto& tree = history_.tree;
    for (const auto& task : tree.tasks) {
      const auto own = line(task.pid_namespace);
      for (const Pid leader : {task.group, task.session}) {
        const auto place = places_.find(leader.value);
        if (place == places_.end()) continue;
        const auto others = line(place->second.space);
        const auto common = std::ranges::mismatch(own, others).in2 - others.begin();
        const auto& nested = place->second.nested;
        model::note_dead_leader(tree, task, leader, {nested.begin(), nested.begin() + common});
      }
    }
  }

  // ---- operations

  Task& born(Pid pid, Pid parent, const Place& place, Pid group, Pid session) {
    Task& task = tasks_[pid];
    task.pid = pid, task.parent = parent, task.group = group, task.session = session;
    task.pid_namespace = place.space, task.nested_pids = place.nested;
    auto& thread = task.threads.emplace_back();
    thread.tid = leader_of(pid), thread.nested_tids = place.nested;
    use(pid.value, 1);
    enter_session(task);
    living_.add(pid);
    children_[parent].insert(pid);
    return task;
  }
  void fork(const Task& task) { create<Fork>(task, task.pid); }
  void clone(const Task& task) {
    if (!is_init(task)) create<Clone>(task, task.parent);  // it has no siblings (EINVAL)
  }
  /// Sometimes in a namespace below, where whoever creates it does not live himself, or in a new one.
  template <typename Birth>
  void create(const Task& task, Pid parent) {
    const Pid entered = pid_namespaces_ && pick(6) == 0 ? any_space_below(task) : task.pid_namespace;
    const bool enters = entered != task.pid_namespace;
    Birth birth;
    birth.child_pid = Pid{fresh_number()};
    birth.new_pid_namespace = pid_namespaces_ && !enters && pick(5) == 0;
    if (birth.new_pid_namespace) above_[birth.child_pid] = task.pid_namespace;
    const Pid space = birth.new_pid_namespace ? birth.child_pid : entered;
    birth.nested_pids = take_place(birth.child_pid.value, space);
    if (enters) add(task.pid, EnterPidNamespace{space});
    add(task.pid, birth);
    if (enters) add(task.pid, EnterPidNamespace{task.pid});
    born(birth.child_pid, parent, {space, birth.nested_pids}, task.group, task.session).controlling_terminal =
        task.controlling_terminal;
  }
  /// Its own if there is none.
  Pid any_space_below(const Task& task) {
    std::vector<Pid> below;
    for (const auto& [init, above] : above_) {
      const auto found = tasks_.find(init);
      const bool lives = found != tasks_.end() && found->second.pid_namespace == init &&
                         found->second.state != model::TaskState::zombie;
      if (lives && init != task.pid_namespace && contains(task.pid_namespace, init)) below.push_back(init);
    }
    return below.empty() ? task.pid_namespace : below[pick(below.size())];
  }

  /// Nobody else can be in a group or session of its number that does not lead one.
  void set_sid(Task& task) {
    if (task.session == task.pid || uses_.at(task.pid.value) > 1) return;
    add(task.pid, SetSid{});
    leave_session(task);
    task.session = task.group = task.pid;
    task.controlling_terminal = 0;
    enter_session(task);
  }

  void set_group(Task& task) {
    if (task.session == task.pid) return;
    const Pid member = any_neighbour(task);
    const Pid group = pick(4) == 0 ? task.pid : tasks_.at(member).group;
    const auto parent = tasks_.find(task.parent);
    const bool by_parent = pick(2) == 0 && parent != tasks_.end() && parent->second.session == task.session;
    if (!can_name(by_parent ? parent->second : task, group)) return;
    add(by_parent ? parent->first : task.pid, SetPgid{task.pid, group});
    use(group.value, 1);
    use(std::exchange(task.group, group).value, -1);
  }

  /// Of its session; a child more often than others, because only in such groups is an init of its own namespace's.
  Pid any_neighbour(const Task& task) {
    const auto& children = children_[task.pid];
    if (!children.empty() && pick(3) == 0) {
      const Pid child = *std::next(children.begin(), static_cast<ptrdiff_t>(pick(children.size())));
      if (tasks_.at(child).session == task.session) return child;
    }
    return members_.at(task.session).any(*this);
  }

  void set_reaper(Task& task) {
    task.child_subreaper = !task.child_subreaper;
    add(task.pid, SetChildReaper{task.child_subreaper});
  }

  void add_thread(Task& task) {
    const Tid tid{fresh_number()};
    const auto nested = take_place(tid.value, task.pid_namespace);
    add(task.pid, StartThread{tid, nested});
    auto& thread = task.threads.emplace_back();
    thread.tid = tid, thread.nested_tids = nested;
    use(tid.value, 1);
  }

  /// Who has children is waited for at once: nothing else would order what they do with their new parent. So is a
  /// leader with a terminal, which its session loses. Others may stay zombies for a while.
  void exit(Task& task) {
    if (!may_end(task) || would_hang_up(task)) return;
    const bool loses_terminal = is_leader(task) && task.controlling_terminal != 0;
    const bool stays = children_[task.pid].empty() && !loses_terminal && pick(2) == 0;
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
    lose_terminal(task);
    task.state = model::TaskState::zombie;
    task.exit_status = status;
    task.child_subreaper = false;
    living_.remove(pid);
    zombies_.add(pid);
  }
  Pid reaper_of(const Task& task) const {
    for (Pid at = task.parent;; at = tasks_.at(at).parent) {
      const Task& above = tasks_.at(at);
      if (above.pid_namespace != task.pid_namespace) return task.pid_namespace;  // who has come by setns
      if (is_init(above) || above.child_subreaper) return at;
    }
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

  // ---- terminals

  bool is_leader(const Task& task) const { return task.session == task.pid; }
  /// Numbers of its two sides, in whoever has it.
  static int slave_of(uint64_t terminal) { return 4 + 2 * static_cast<int>(model::index_of_terminal(terminal)); }
  void acquire_terminal(Task& task) {
    if (!is_leader(task) || task.controlling_terminal != 0) return;
    OpenTerminal open;
    open.terminal = model::terminal_with_index(static_cast<uint32_t>(opened_terminals_++));
    open.slave_fd = slave_of(open.terminal), open.master_fd = open.slave_fd - 1;
    add(task.pid, open);
    add(task.pid, SetControllingTerminal{open.slave_fd});
    task.controlling_terminal = open.terminal;
    foregrounds_[task.pid] = task.group;
  }
  void leave_terminal(Task& task) {
    if (is_leader(task) || task.controlling_terminal == 0) return;
    add(task.pid, LeaveTerminal{slave_of(task.controlling_terminal)});
    task.controlling_terminal = 0;
  }
  /// By somebody who is in the foreground: nobody else may.
  void change_foreground(const Task& task) {
    if (task.controlling_terminal == 0 || foregrounds_.at(task.session) != task.group) return;
    const Pid group = tasks_.at(members_.at(task.session).any(*this)).group;
    if (!can_name(task, group)) return;
    add(task.pid, SetForegroundGroup{slave_of(task.controlling_terminal), group});
    foregrounds_[task.session] = group;
  }
  /// A leader that ends sends SIGHUP to the foreground.
  bool would_hang_up(const Task& task) const {
    if (!is_leader(task) || task.controlling_terminal == 0) return false;
    return std::ranges::any_of(tasks_, [&](const auto& entry) {
      const auto& other = entry.second;
      return other.pid != task.pid && other.state != model::TaskState::zombie &&
             other.group == foregrounds_.at(task.pid);
    });
  }
  void lose_terminal(Task& ending) {
    if (is_leader(ending) && ending.controlling_terminal != 0) {
      foregrounds_.erase(ending.pid);
      for (auto& [pid, task] : tasks_) {
        if (task.session == ending.pid) task.controlling_terminal = 0;
      }
    }
    ending.controlling_terminal = 0;
  }
  void note_terminals() {
    for (const auto& [session, group] : foregrounds_) {
      const bool anybody = group.value != 0 && std::ranges::any_of(tasks_, [&](const auto& entry) {
                             return entry.second.group == group && entry.second.session == session;
                           });
      history_.tree.terminals[tasks_.at(session).controlling_terminal] = {
          .session = session, .foreground = anybody ? group : Pid{}, .slave_opened = true};
    }
  }

  // ---- the last operations

  void end_some() {
    for (auto& [pid, task] : tasks_) {
      const bool lives_on =
          task.state == model::TaskState::zombie || !children_[pid].empty() || !may_end(task) || would_hang_up(task);
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

  bool pid_namespaces_, terminals_;
  size_t opened_terminals_ = 0;
  std::map<Pid, Pid> foregrounds_;  ///< by session
  std::map<pid_t, Place> places_;   ///< of ids in nested namespaces
  std::map<Pid, Pid> above_;        ///< nested namespaces → those they lie in
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

TreeHistory random_history(uint64_t seed, unsigned operations, bool pid_namespaces, bool terminals) {
  return History(seed, pid_namespaces, terminals).run(operations);
}

}  // namespace stasis::plan
