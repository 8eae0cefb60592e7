// A creation tree in which everybody can be given what he shares with others by clone flags.
#pragma once

#include "plan/carried.h"
#include "plan/emission.h"
#include "plan/tree.h"

namespace stasis::plan {

struct SharingTree {
  CreationTree tree;
  Carried carried;
  std::map<Pid, Pid> copied_from;  ///< whose memory they have a copy of at birth, where that is not their creator's
};

/// Errors: as of plan_tree. That something cannot be given to somebody is for TreeEmission to say: then the tree is the
/// one that was tried first.
Result<SharingTree> plan_sharing_tree(const model::Application&, const PlanOptions&);

}  // namespace stasis::plan
