// -t/--tree of the commands that look at a running tree.
#pragma once

#include <sys/types.h>

#include <string_view>

#include "base/result.h"

namespace CLI {
class App;
}

namespace stasis::cli {

/// -t,--tree, required: a number that can be a pid.
void add_target_option(CLI::App&, pid_t& root);

/// Asked first of all: there is such a process. `operation` is what is to be done with it, such as "dump".
Status check_target(std::string_view operation, pid_t root);
/// The same, and we have the rights that looking at all of its state needs: a tree is not stopped to find that out.
Status check_target_and_rights(std::string_view operation, pid_t root);

}  // namespace stasis::cli
