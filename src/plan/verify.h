// Interprets a Program over a model of the kernel and compares the outcome with the Application.
//
// Shares no code with the planner. A Program is accepted only if no precondition of any command fails, no wait can
// deadlock, the order that the program's own waits enforce is enough (no command relies on another process's step
// that could come later), and the final state equals the Application.
#pragma once

#include <optional>
#include <string>

#include "model/application.h"
#include "plan/contributor.h"
#include "plan/program.h"

namespace stasis::plan {

struct Rejection {
  size_t command = 0;  ///< index, or commands.size() for the final comparison
  Pid pid;
  std::string rule;  ///< the kernel's rule or the difference, in one sentence
  std::string message(const Program& program) const;
};

/// How much of the Application a Program has to establish.
enum class Extent {
  whole,  ///< everything
  tree,   ///< pids, parents, groups, sessions, states, threads and subreaper flags: a bare tree (plan/bare_tree.h)
};

/// Nothing: accepted.
std::optional<Rejection> verify(const Program& program, const model::Application& wanted, Extent = Extent::whole);

/// What a Program leads to, as a bare tree; or the command that no kernel would carry out.
struct Outcome {
  model::Application tree;
  std::optional<Rejection> rejection;
};
Outcome outcome_of(const Program& program);

}  // namespace stasis::plan
