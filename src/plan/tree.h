// Process trees: is this tree restorable, and by which steps.
//
// The hard part of a tree are sessions: they are inherited at birth and made only by their leader, while reparenting
// hides who created whom. So a *creation tree* is searched: who forks whom, such that every process is born in the
// right session and its final parent is among its creators; then a transient relay between creator and child lets the
// parent adopt the child (kernel/exit.c, find_new_reaper). A tree is restorable if and only if a creation tree exists.
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"
#include "model/application.h"
#include "plan/program.h"

namespace stasis::plan {

/// What matters of a process here.
struct Node {
  Pid pid, parent, group, session;
  bool zombie = false;
  int exit_status = 0;
  /// A dead session leader that must be re-created for a while: the child of whoever creates it, unless it has a
  /// parent.
  bool transient = false;
  bool has_parent() const { return parent.value != 0; }
};

struct CreationTree {
  Pid root;
  bool root_is_namespace_init = false;
  std::map<Pid, Node> nodes;                      ///< tasks and dead leaders
  std::map<Pid, Pid> creator;                     ///< of every node but the root
  std::map<Pid, std::vector<Pid>> before_setsid;  ///< children a leader creates before its setsid
  std::map<Pid, std::vector<Pid>> children;       ///< children created otherwise, in order
  std::map<Pid, Pid> born_session;                ///< of leaders
  std::map<Pid, Pid> birth_groups;  ///< of those who come into a pid namespace in another than their creator's
  std::vector<Pid> deferred;  ///< who is born when the others are there: into a pid namespace from outside, in order
  /// Who is in groups that are led from outside of its pid namespace, and not only from birth: whoever is its parent
  /// then puts it into them.
  struct Moves {
    Pid born_in;
    std::set<Pid> groups;
  };
  std::map<Pid, Moves> moved;
  std::set<Pid> adopters;  ///< NamespaceBirths::adopters
  std::set<Pid> siblings;  ///< NamespaceBirths::siblings
  std::set<pid_t> taken;   ///< ids that no transient process may have

  bool is_leader(Pid pid) const { return nodes.at(pid).session == pid; }
  /// Not created by its parent, or by that with the help of others.
  bool comes_to_its_parent(Pid pid) const {
    return creator.at(pid) != nodes.at(pid).parent || moved.contains(pid) ||
           std::ranges::find(deferred, pid) != deferred.end();
  }
};

struct TreeLimits {
  size_t search_steps = 100'000;  ///< bound of the search for born sessions
};

/// Everybody below `first`, himself included, in the order in which they are created, creators first; without those
/// below the ones to leave out.
std::vector<Pid> birth_order(const CreationTree&, Pid first, const std::set<Pid>& without);
/// All of them: those that are deferred last.
std::vector<Pid> birth_order(const CreationTree&);

/// Whether it has to be created by just one of its parent's threads, which is not the leader.
bool depends_on_parent_thread(const model::TaskIndex&, const model::Task&);

enum class Verdict { restorable, not_restorable, undecided };
/// Errors: invalid_input names a broken invariant; conflict says what of the tree lies outside.
Result<Verdict> decide_tree(const model::Application&, const TreeLimits& = {});

using Births = std::map<Pid, Pid>;  ///< session leaders → the session that each was born in

/// Errors: as above; conflict, too, if no history leads to this tree, with the processes that cannot be together
/// (plan/tree_conflict.h); unsupported says that the search was given up. `likely` is tried before anything is searched
/// for: births that were right for a tree of this shape. It may hold anything.
Result<CreationTree> plan_tree(const model::Application&, const TreeLimits& = {}, const Births& likely = {});

/// Who is to be among whose creators, beside those who must be: of those who are born in one session.
using Ancestors = std::map<Pid, std::set<Pid>>;

/// The creation tree for just these births, and with these among the creators. Nothing if there is none.
std::optional<CreationTree> tree_with(const model::Application&, const Births&, const Ancestors&);

/// Those of a program that builds a tree whose root is in `root_session`, and in which no two processes that lead
/// sessions have had the same pid.
Births births_in(const Program&, Pid root_session);

}  // namespace stasis::plan
