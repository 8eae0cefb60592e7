// Bare process trees for real: built in a fresh pid namespace, looked at, and taken down again.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "model/application.h"
#include "plan/program.h"

namespace stasis::execute {

/// Runs the program in a new pid namespace, stops whoever is to be stopped, and compares what /proc shows and, of their
/// subreaper flags, what the processes themselves answer, with the tree. Gives the differences; nothing: they are
/// equal. Whatever happens, nothing is left. Needs CAP_SYS_ADMIN.
Result<std::vector<std::string>> run_tree(const plan::Program&, const model::Application& wanted);

/// The tree below a process as /proc shows it now, without stopping anybody: ids as the innermost pid namespace of the
/// root has them.
Result<model::Application> look_at_tree(pid_t root);

}  // namespace stasis::execute
