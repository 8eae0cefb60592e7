// The commands that bring everybody into his process group, once all have been born into that of their session.
//
// A group lives as long as it has a member, its leader or not (kernel/pid.c): whoever leads a group but belongs to
// another may leave only when somebody is there who stays. Groups can be led crosswise: then a child of one of the
// leaders holds its group for a moment.
#pragma once

#include <map>

#include "plan/emission.h"
#include "plan/tree.h"

namespace stasis::plan {

/// Groups that have been founded while the tree was created: somebody stays in each, until the others have come.
struct Held {
  Pid holder, parent;
  Pid grandparent = {};  ///< of a holder in a pid namespace that its parent has entered for that alone; 0: it has not
};
using HeldGroups = std::map<Pid, Held>;

void emit_groups(Emission&, const CreationTree&, const HeldGroups&);

}  // namespace stasis::plan
