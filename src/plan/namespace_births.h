// What nested pid namespaces demand of the births of a tree.
//
// Plans begin a namespace by cloning its init, and everybody else in it descends from that init (setns is not planned
// for). So what processes of a namespace have from outside, they have inherited from the init: one session, and one
// group (whose leader they cannot name, and which they could not join). Trees that need more have come about by setns,
// or by an outer parent that moved the init between groups; of these is said that they are undecided.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>

#include "model/application.h"
#include "model/pid_namespaces.h"

namespace stasis::plan {

class NamespaceBirths {
 public:
  NamespaceBirths(const model::Application&, const model::PidNamespaces&);

  /// Why no clone of inits alone leads to the tree, in one sentence; empty: nothing speaks against it.
  const std::string& obstacle() const { return obstacle_; }
  /// Whether a process that is born in this namespace can be born in this session: one that is led in there, or the one
  /// from outside.
  bool allows(Pid space, Pid session) const;
  /// The same for a session leader: an init that leads one may have to be born in another.
  bool allows_birth(Pid leader, Pid session) const;
  /// The group that a namespace's init is born in, where that is not its session's own.
  const std::map<Pid, Pid>& birth_groups() const { return birth_groups_; }

 private:
  void find_sessions();
  void find_groups();
  void object(std::string text) {
    if (obstacle_.empty()) obstacle_ = std::move(text);
  }

  const model::Application& application_;
  const model::TaskIndex tasks_;
  const model::PidNamespaces& spaces_;
  Pid root_session_;
  std::map<Pid, Pid> outer_session_;  ///< of namespaces: the one from outside that processes of it are in
  std::map<Pid, Pid> birth_groups_;
  std::string obstacle_;
};

/// A tree with the same parents and sessions in one namespace. The children of inits make no demand on where they were
/// born: that is where orphans come to whose parents had come by setns. If this tree has no history, neither has the
/// other.
model::Application without_pid_namespaces(const model::Application&, const model::PidNamespaces&);

}  // namespace stasis::plan
