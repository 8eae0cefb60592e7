// Why a tree is not restorable: the processes that cannot be together.
#pragma once

#include <string>
#include <vector>

#include "model/application.h"
#include "plan/tree.h"

namespace stasis::plan {

/// Of a tree that is not restorable: processes whose parents and sessions no history leads to, even if all others were
/// children of the root, or of the init of the pid namespace that their parents live in. There is no smaller set, or,
/// in trees too large to try them all, none of these can be left out. None: it is not because of parents.
std::vector<Pid> smallest_conflict(const model::Application&, const TreeLimits&);

/// The processes, and the rule that they break together.
std::string describe_conflict(const model::Application&, const std::vector<Pid>& processes);

}  // namespace stasis::plan
