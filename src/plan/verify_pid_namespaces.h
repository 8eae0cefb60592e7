// Pid namespaces in the verifier's model of the kernel: which numbers are in use where, and who can name whom
// (kernel/pid.c, alloc_pid; kernel/pid_namespace.c).
#pragma once

#include <functional>
#include <map>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/types.h"
#include "plan/verify_order.h"
#include "plan/verify_space.h"

namespace stasis::plan {

/// A namespace is named by its init's pid, the tree's own by 0. An id is named by its number in the tree's own.
class NamespaceModel {
 public:
  struct Place {
    Pid space;
    std::vector<pid_t> nested;  ///< the id's numbers below the tree's own namespace, outermost first
  };

  void begin(Pid init, Pid above);
  bool is_init(Pid pid) const { return inits_.contains(pid); }
  Pid above(Pid init) const { return above_.at(init); }
  /// `inner` is `outer`, or nested in it.
  bool contains(Pid outer, Pid inner) const;
  /// An id that a process, a group or a session has.
  const Place& place_of(pid_t id) const;
  bool sees(Pid space, pid_t id) const { return contains(space, place_of(id).space); }
  /// As many of its numbers as somebody who lives in `space` sees, and the innermost of the namespaces they belong to.
  Place seen_from(Pid space, pid_t id) const;

  /// A new id takes its numbers. `is_before` says whether a stamp is certain to be past.
  Broken claim(pid_t id, Pid space, const std::vector<pid_t>& nested,
               const std::function<bool(const Stamp&)>& is_before);
  /// All that have a number in a nested namespace.
  std::vector<pid_t> ids_in(Pid space) const;
  /// Nobody has the id any more.
  void release(pid_t id, Stamp);

 private:
  using Number = std::pair<Pid, pid_t>;
  std::vector<Pid> line(Pid space) const;

  std::unordered_map<Pid, Pid> above_;  ///< also of those that are gone: a group may still have its name from there
  std::unordered_set<Pid> inits_;
  std::unordered_map<pid_t, Place> places_;  ///< of ids in nested namespaces
  std::map<Number, pid_t> taken_;            ///< by which id
  std::map<Number, Stamp> released_;
};

}  // namespace stasis::plan
