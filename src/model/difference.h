// What differs between two Applications, in sentences. Used to check restores: before and after must be equal.
//
// Left out, because a running program changes them between two looks: general registers and the
// system call in which they stand, the bytes of pages, which pages are present, and how much of a timer remains. Object
// ids are numbered in the order of capture, which is the same for the same tree, and are compared.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "model/application.h"

namespace stasis::model {

/// Names of parts, as they begin the sentences: "timers", "signals.pending", "memory.mappings" … in `ignored` are
/// skipped.
std::vector<std::string> differences(const Application& before, const Application& after,
                                     const std::set<std::string>& ignored = {});

}  // namespace stasis::model
