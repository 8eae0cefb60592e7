// What is common to some processes, and not to those between them in the tree of creators: these carry it from their
// birth until they have created all others, and unshare it then.
#pragma once

#include <map>

#include "plan/tree.h"

namespace stasis::plan {

/// By who carries it.
struct Carried {
  std::map<Pid, ObjectId> files, fs;
};

Carried carried_in(const model::Application&, const CreationTree&);

}  // namespace stasis::plan
