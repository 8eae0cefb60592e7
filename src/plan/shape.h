// The shape of a bare tree: what stays when its pids are renamed.
//
// Processes, and dead leaders whose pids still name a session or a group, are the nodes of a graph with the links
// parent, session and group. It is brought into a canonical form: first every node gets a colour from its subtree
// (A. Aho, J. Hopcroft, J. Ullman, The Design and Analysis of Computer Algorithms, 3.2) and from those above it, then
// colours are refined along all links until they tell no more apart. Nodes with a colour of their own are settled and
// taken out; what is left falls into parts that have nothing to do with each other. Each is settled alone and they are
// sorted, so that a thousand equal children cost no more than a thousand different ones. Only where a part does not
// fall apart is one of its nodes given a colour of its own, each of those that look alike in turn, and the least
// outcome is taken.
#pragma once

#include <map>
#include <string>

#include "base/result.h"
#include "model/application.h"

namespace stasis::plan {

struct Shape {
  /// With canonical pids: processes in the order of a walk from the root (1 for the init of a pid namespace, else 2),
  /// then dead leaders, then threads. 0 stays 0.
  model::Application tree;
  std::map<pid_t, pid_t> renaming;  ///< ids of the original → canonical ones
  std::string hash;                 ///< 32 hexadecimal digits: XXH3, 128 bits, of the canonical tree as JSON
};

struct ShapeLimits {
  size_t trials = 100'000;  ///< nodes that are given a colour of their own; real trees need none or a few
};

/// Two trees have the same shape if and only if their canonical trees are equal. unsupported: too many trials.
Result<Shape> canonical_form(const model::Application&, const ShapeLimits& = {});

/// From canonical ids to the original ones.
std::map<pid_t, pid_t> inverted(const std::map<pid_t, pid_t>& renaming);

/// The tree with other ids; what is not in `renaming` stays. Only what makes a bare tree is kept, and ids in nested pid
/// namespaces are made by one rule (plan/nested_numbers.h).
model::Application renamed(const model::Application&, const std::map<pid_t, pid_t>& renaming);

}  // namespace stasis::plan
