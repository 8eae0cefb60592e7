// The pid namespaces of an Application: the tree's own, and those nested in it. Each is named by its init's pid, the
// tree's own by 0. A process has a number in its own namespace and in each above it; whoever lives elsewhere cannot
// name it (pid_namespaces(7)).
#pragma once

#include <unordered_map>
#include <vector>

#include "model/application.h"

namespace stasis::model {

class PidNamespaces {
 public:
  /// Of processes, their threads, and dead leaders. Nothing but problem() may be asked of what contradicts itself.
  explicit PidNamespaces(const Application&);

  bool any() const { return !places_.empty(); }
  /// The first contradiction, in one sentence; empty: there is none.
  std::string problem() const;

  /// The namespace that a process, thread or dead leader lives in.
  Pid of(pid_t id) const { return place_of(id).space; }
  Pid of(Pid pid) const { return of(pid.value); }
  bool is_init(Pid pid) const { return pid.value != 0 && spaces_.contains(pid); }
  /// Where it is created: an init begins its namespace from the one above.
  Pid born_in(Pid pid) const { return is_init(pid) ? above(pid) : of(pid); }
  Pid above(Pid space) const;
  size_t level(Pid space) const;
  /// `inner` is `outer`, or nested in it.
  bool contains(Pid outer, Pid inner) const;
  /// Its number as seen from a namespace; 0: it cannot be seen from there.
  pid_t number(pid_t id, Pid space) const;
  /// In the namespaces below the tree's own, outermost first.
  const std::vector<pid_t>& nested(pid_t id) const { return place_of(id).nested; }
  /// Namespaces from `space` up to, and without, the tree's own, outermost first.
  std::vector<Pid> line(Pid space) const;
  /// Inits, those of outer namespaces before those of inner ones.
  const std::vector<Pid>& inits() const { return inits_; }

 private:
  struct Place {
    Pid space;
    std::vector<pid_t> nested;
  };
  struct Space {
    Pid above;
    size_t level = 1;
    bool has_ended = false;
  };
  const Place& place_of(pid_t id) const;
  void add_spaces();
  std::string problem_of_init(const Task&) const;
  std::string problem_of(const Task&) const;
  std::string problem_of_dead_leaders() const;
  std::string problem_of_numbers() const;
  std::string problem_of_leaders(const Task&) const;

  const Application& application_;
  std::unordered_map<pid_t, Place> places_;  ///< of those in nested namespaces
  std::unordered_map<Pid, Space> spaces_;
  std::vector<Pid> inits_;
};

/// A member of a session or group sees these nested numbers of its leader, from the first 0 on none: if the leader is
/// gone, they are noted. Namespaces of all tasks must be known.
void note_dead_leader(Application&, const Task& member, Pid leader, std::vector<pid_t> seen);

/// Whether it is the init of a namespace that cannot lie in its parent's: a sibling has begun it further inside
/// (Task::outer_namespace).
bool is_begun_for_sibling(const Application&, const Task&);

/// How a process or thread is numbered where it lives itself.
inline pid_t own_number(const Task& task) {
  return task.nested_pids.empty() ? task.pid.value : task.nested_pids.back();
}
inline pid_t own_number(const Thread& thread) {
  return thread.nested_tids.empty() ? thread.tid.value : thread.nested_tids.back();
}

}  // namespace stasis::model
