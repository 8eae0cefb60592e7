// What nested pid namespaces demand of the births of a tree.
//
// A namespace begins with its init. Nearly always everybody else in it descends from that init: what they have from
// outside, such as a session, they have inherited from it. Where that leads to no tree, processes are looked for that
// have come by setns: created in the namespace by one that lives outside of it, above.
#pragma once

#include <map>
#include <set>
#include <string>

#include "model/application.h"
#include "model/pid_namespaces.h"
#include "plan/tree.h"

namespace stasis::plan {

/// How processes come into a pid namespace.
enum class Arrival { by_clones, by_setns };

class NamespaceBirths {
 public:
  NamespaceBirths(const model::Application&, const model::PidNamespaces&, Arrival);

  /// Why the tree cannot have come about so, in one sentence; empty: nothing speaks against it.
  const std::string& obstacle() const { return obstacle_; }
  /// The obstacle is none to the kernel, only to plans.
  bool is_undecided() const { return is_undecided_; }
  /// Inits whose children make no demand on where they were created, beyond that it was in the init's namespace, by
  /// whomever: orphans come to the init from there, also those of parents that have come by setns.
  const std::set<Pid>& adopters() const { return adopters_; }
  /// Whoever is born in a session that is led from further inside than its parent lives was created by the leader, or
  /// by another such, as a sibling (CLONE_PARENT). All of them have one parent, the leader, too.
  bool is_sibling(const Node&, Pid birth_session) const;
  /// The parent of those whom a dead leader has created as siblings; 0: there are none.
  Pid parent_of_dead(Pid leader) const {
    const auto found = parents_of_dead_.find(leader);
    return found == parents_of_dead_.end() ? Pid{} : found->second;
  }
  /// The namespace that its creator lives in, or the creator's relay: who has a parent was created by a process of the
  /// parent's namespace (kernel/exit.c, find_new_reaper).
  Pid creators_space(const Node&, Pid birth_session) const;
  /// Whether it can be in the groups from outside of its namespace that it has to be in at its birth, by itself or for
  /// its children, if the init of its parent's namespace creates it, in this session.
  bool can_init_create(Pid init, Pid session, Pid pid) const;
  bool any() const { return spaces_.any(); }
  Pid home_of(Pid pid) const { return spaces_.of(pid); }
  /// Whether a session leader who is born in this session can have been created by a process that lives in `space`, or
  /// by one whom that has created, and its own child be one by a process of that namespace. Elders live further inside.
  bool can_be_between(const Node& leader, Pid session, Pid space) const;
  /// Whether a session leader can be born in this session: one of a namespace that contains its creator.
  bool allows_birth(const Node& leader, Pid session) const;

 private:
  bool allows(Pid space, Pid session) const;
  void find_outer_groups();
  void find_sessions();
  void check_by_clones();
  void check_by_setns();
  bool can_be_sibling(const Node& leader, Pid session) const;
  void object(std::string text) {
    if (obstacle_.empty()) obstacle_ = std::move(text);
  }

  const model::Application& application_;
  const model::TaskIndex tasks_;
  const model::PidNamespaces& spaces_;
  Arrival arrival_;
  std::map<Pid, Pid> outer_session_;  ///< of namespaces: the one from outside that processes of it are in
  std::set<Pid> adopters_;
  std::map<Pid, Pid> parents_of_dead_;
  std::map<Pid, std::set<Pid>> outer_groups_;  ///< that somebody has to be in at some time, led from outside of his
  std::string obstacle_;
  bool is_undecided_ = false;
};

/// Whom the creators of a tree lead to births that have to wait (CreationTree::deferred), and in which groups these
/// come into their namespaces (CreationTree::birth_groups): nobody can join one that is led from outside. A sentence: a
/// group that somebody should have been born in is not that of his creator. Nothing: all is filled in.
std::string defer_births(CreationTree&, const model::PidNamespaces&, const NamespaceBirths&);

}  // namespace stasis::plan
