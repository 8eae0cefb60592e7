#include "model/pid_namespaces.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace stasis::model {

PidNamespaces::PidNamespaces(const Application& application) : application_(application) {
  for (const auto& task : application.tasks) {
    if (task.nested_pids.empty() && task.pid_namespace.value == 0) continue;
    places_[task.pid.value] = {task.pid_namespace, task.nested_pids};
    for (const auto& thread : task.threads) {
      if (thread.tid != leader_of(task.pid)) places_[thread.tid.value] = {task.pid_namespace, thread.nested_tids};
    }
  }
  for (const auto& [pid, leader] : application.dead_leaders)
    places_.try_emplace(pid.value, Place{leader.pid_namespace, leader.nested_pids});
  add_spaces();
}

/// A namespace lies in that of the process that began it, whose child the init is mostly: who comes to another parent
/// has had one in the same namespace (kernel/exit.c, find_new_reaper). Where a process that had come there by setns
/// began it for a sibling (CLONE_PARENT, CLONE_NEWPID), the parent lives further outside.
void PidNamespaces::add_spaces() {
  std::vector<const Task*> inits;
  for (const auto& task : application_.tasks) {
    if (task.pid_namespace.value != 0 && task.pid_namespace == task.pid) inits.push_back(&task);
  }
  std::ranges::stable_sort(inits, {}, [](const Task* init) { return init->nested_pids.size(); });
  for (const auto* init : inits) {
    const Pid above = init->outer_namespace.value != 0 ? init->outer_namespace : of(init->parent);
    spaces_[init->pid] = {above, std::max<size_t>(1, init->nested_pids.size()), init->state == TaskState::zombie};
    inits_.push_back(init->pid);
  }
}

const PidNamespaces::Place& PidNamespaces::place_of(pid_t id) const {
  static const Place outside;
  const auto found = places_.find(id);
  return found == places_.end() ? outside : found->second;
}

Pid PidNamespaces::above(Pid space) const {
  const auto found = spaces_.find(space);
  return found == spaces_.end() ? Pid{} : found->second.above;
}
size_t PidNamespaces::level(Pid space) const {
  const auto found = spaces_.find(space);
  return found == spaces_.end() ? 0 : found->second.level;
}

bool PidNamespaces::contains(Pid outer, Pid inner) const {
  for (Pid at = inner;; at = above(at)) {
    if (at == outer) return true;
    if (at.value == 0) return false;
  }
}

pid_t PidNamespaces::number(pid_t id, Pid space) const {
  if (space.value == 0) return id;
  const auto& place = place_of(id);
  return place.space.value != 0 && contains(space, place.space) ? place.nested.at(level(space) - 1) : 0;
}

std::vector<Pid> PidNamespaces::line(Pid space) const {
  std::vector<Pid> spaces;
  for (Pid at = space; at.value != 0; at = above(at)) spaces.push_back(at);
  std::ranges::reverse(spaces);
  return spaces;
}

std::string PidNamespaces::problem() const {
  const auto speaks_of_one = [](const Task& task) {
    return task.outer_namespace.value != 0 ||
           std::ranges::any_of(task.threads, [](const auto& one) { return one.childrens_namespace.value != 0; });
  };
  if (!any() && std::ranges::none_of(application_.tasks, speaks_of_one)) return {};
  // First of all that each namespace lies in one with a level less: there is no way round and round.
  for (const auto& part : {&PidNamespaces::problem_of_init, &PidNamespaces::problem_of}) {
    for (const auto& task : application_.tasks) {
      if (auto text = (this->*part)(task); !text.empty()) return text;
    }
  }
  if (auto text = problem_of_dead_leaders(); !text.empty()) return text;
  if (auto text = problem_of_numbers(); !text.empty()) return text;
  for (const auto& task : application_.tasks) {
    if (auto text = problem_of_leaders(task); !text.empty()) return text;
  }
  return {};
}

std::string PidNamespaces::problem_of_init(const Task& task) const {
  const Pid space = task.pid_namespace;
  if (space.value != 0 && !spaces_.contains(space))
    return fmt::format("{} is in the pid namespace of {}, which is the init of none", task.pid, space);
  if (task.nested_pids.size() != level(space))
    return fmt::format("{} has {} nested ids, but its pid namespace is {} levels deep", task.pid,
                       task.nested_pids.size(), level(space));
  if (task.pid == application_.root && space.value != 0)
    return fmt::format("the root {} is in a nested pid namespace", task.pid);
  const Pid outer = task.outer_namespace;
  const bool is_init = space.value != 0 && space == task.pid;
  if (outer.value != 0 && !is_init)
    return fmt::format("{} is the init of no pid namespace that could lie in that of {}", task.pid, outer);
  if (outer.value != 0 && (!spaces_.contains(outer) || outer == of(task.parent)))
    return fmt::format("the pid namespace of {} is said to lie in that of {}, which is {}", task.pid, outer,
                       spaces_.contains(outer) ? "its parent's anyway" : "the init of none");
  if (space.value == 0) return {};
  if (is_init != (task.nested_pids.back() == 1))
    return fmt::format("{} is {}the init of a pid namespace, but its id there is {}", task.pid, is_init ? "" : "not ",
                       task.nested_pids.back());
  if (is_init && level(above(space)) + 1 != level(space))
    return outer.value == 0
               ? fmt::format("{} is the init of a pid namespace {} levels deep, but its parent {} lives {} levels deep",
                             task.pid, level(space), task.parent, level(above(space)))
               : fmt::format("{} is the init of a pid namespace {} levels deep, but that of {} is {} levels deep",
                             task.pid, level(space), outer, level(outer));
  return {};
}

std::string PidNamespaces::problem_of(const Task& task) const {
  const Pid space = task.pid_namespace;
  for (const auto& thread : task.threads) {
    if (thread.nested_tids.size() != level(space))
      return fmt::format("thread {} of {} has {} nested ids instead of {}", thread.tid, task.pid,
                         thread.nested_tids.size(), level(space));
    if (thread.tid == leader_of(task.pid) && thread.nested_tids != task.nested_pids)
      return fmt::format("the first thread of {} has other nested ids than the process", task.pid);
  }
  if (!contains(of(task.parent), space))
    return fmt::format("{} is in a pid namespace that its parent {} is not above", task.pid, task.parent);
  const Pid around = space == task.pid ? task.outer_namespace : space;
  if (around.value != 0 && spaces_.at(around).has_ended)
    return fmt::format("{} is in the pid namespace of {}, which has ended: its end would have ended all", task.pid,
                       around);
  for (const auto& thread : task.threads) {
    const Pid childrens = thread.childrens_namespace;
    if (childrens.value == 0) continue;
    if (task.state == TaskState::zombie || thread.has_ended())
      return fmt::format("{} has ended, but its children are born in another pid namespace", thread.tid);
    if (childrens == empty_namespace) continue;
    if (!spaces_.contains(childrens) || spaces_.at(childrens).has_ended || childrens == space ||
        !contains(space, childrens))
      return fmt::format("the children of {} are born in the pid namespace of {}, which is none below its own",
                         task.pid, childrens);
  }
  return {};
}

std::string PidNamespaces::problem_of_dead_leaders() const {
  for (const auto& [pid, leader] : application_.dead_leaders) {
    if (application_.find(pid) != nullptr) return fmt::format("{} is no dead leader: it is a process", pid);
    if (!spaces_.contains(leader.pid_namespace) || leader.nested_pids.size() != level(leader.pid_namespace))
      return fmt::format("the dead leader {} is in no pid namespace of the tree with so many levels", pid);
    if (spaces_.at(leader.pid_namespace).has_ended)
      return fmt::format("{} has ended, but the id of the dead leader {} would have kept its pid namespace from ending",
                         leader.pid_namespace, pid);
    const bool seen =
        std::ranges::any_of(application_.tasks, [&, id = pid, space = leader.pid_namespace](const Task& task) {
          return (task.group == id || task.session == id) && contains(space, task.pid_namespace);
        });
    if (!seen) return fmt::format("nobody in its pid namespace is in a session or group of the dead leader {}", pid);
  }
  return {};
}

/// Each number is given once in each namespace.
std::string PidNamespaces::problem_of_numbers() const {
  std::set<std::pair<Pid, pid_t>> taken;
  for (const auto& [id, place] : places_) {
    const auto spaces = line(place.space);
    for (size_t i = 0; i < spaces.size(); ++i) {
      if (!taken.emplace(spaces[i], place.nested[i]).second)
        return fmt::format("the id {} occurs twice in the pid namespace of {}", place.nested[i], spaces[i]);
    }
  }
  return {};
}

/// Sessions are inherited, and whoever is created lives where its creator does, or deeper.
std::string PidNamespaces::problem_of_leaders(const Task& task) const {
  if (!contains(of(task.session), task.pid_namespace))
    return fmt::format("{} is in session {}, whose leader lives in a pid namespace that {} does not", task.pid,
                       task.session, task.pid);
  return {};
}

void note_dead_leader(Application& application, const Task& member, Pid leader, std::vector<pid_t> seen) {
  seen.erase(std::ranges::find(seen, 0), seen.end());
  if (seen.empty() || leader.value == 0 || application.find(leader) != nullptr) return;
  auto& noted = application.dead_leaders[leader];
  if (noted.nested_pids.size() >= seen.size()) return;
  noted.pid_namespace = PidNamespaces(application).line(member.pid_namespace).at(seen.size() - 1);
  noted.nested_pids = std::move(seen);
}

bool is_begun_for_sibling(const Application& application, const Task& task) {
  if (task.pid_namespace != task.pid) return false;
  const Task* parent = application.find(task.parent);
  return parent != nullptr && task.nested_pids.size() != parent->nested_pids.size() + 1;
}

}  // namespace stasis::model
