// The ids of a bare tree in its nested pid namespaces, where only the shape of a tree matters.
#pragma once

#include "model/application.h"

namespace stasis::plan {

/// Numbers everybody anew: in each namespace its init is 1, and from 2 on come the others that live there or deeper, in
/// the order of their pids, threads among them. Taken for granted are the namespaces of processes and dead leaders.
void number_nested(model::Application&);

}  // namespace stasis::plan
