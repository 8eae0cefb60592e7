// Random histories: operations that a kernel would carry out, and the tree that they lead to.
#pragma once

#include <cstdint>

#include "model/application.h"
#include "plan/program.h"

namespace stasis::plan {

struct TreeHistory {
  model::Application tree;
  Program program;  ///< the operations, one after the other
};

/// So many operations (fork, sibling, setsid, setpgid, subreaper on and off, thread, exit, wait), begun by the init of
/// a pid namespace; at the end some processes without children become zombies, and some others are to be stopped. All
/// waits that are needed between operations of different processes are there. With `pid_namespaces` some children and
/// siblings begin a nested pid namespace, and some come into one from outside; with `terminals` leaders acquire
/// terminals, others leave them, and their foreground changes. The same seed gives the same history, on any machine.
/// Takes n log n without either.
TreeHistory random_history(uint64_t seed, unsigned operations, bool pid_namespaces = false, bool terminals = false);

}  // namespace stasis::plan
