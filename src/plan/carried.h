// What is common to some processes, and not to those between them in the tree of creators: these carry it from their
// birth until they have created all others, and unshare it then. Where what they have from then on is common to them
// and others below, these are born afterwards: the births of those who carry are put into this order.
#pragma once

#include <map>

#include "plan/tree.h"

namespace stasis::plan {

/// By who carries it.
struct Carried {
  std::map<Pid, ObjectId> files, fs;
};

Carried carried_in(const model::Application&, CreationTree&);

}  // namespace stasis::plan
