// What is common to some processes, and not to those between them in the tree of creators: these carry it from their
// birth until they have created all others, and unshare it then. Where what they have from then on is common to them
// and others below, these are born afterwards: the births of those who carry are put into this order.
#pragma once

#include <array>
#include <map>
#include <set>

#include "plan/shareable.h"
#include "plan/tree.h"

namespace stasis::plan {

/// By who carries it.
struct Carried {
  std::map<Pid, ObjectId> files, fs;
};

/// What those at the top of all who have it are to carry even if all others are their children, by kind: then a
/// transient sibling could give it to them, if they are all born at one time.
using CarriedByTops = std::array<std::set<ObjectId>, shareable.size()>;

Carried carried_in(const model::Application&, CreationTree&, const CarriedByTops&);

}  // namespace stasis::plan
