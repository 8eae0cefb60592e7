// Commands that are executed; restore --exec-cmd: stasis becomes one once the tree runs.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/result.h"

namespace stasis::cli {

/// Whether such a command can be executed at all, as execvp(3) looks for it. Asked before anything is created: when the
/// tree runs it is too late.
Status check_command(const std::string& name);

/// As execve(2) takes them; valid as long as the strings are.
std::vector<char*> pointers(std::vector<std::string>& strings);

/// Does not return if it goes well.
Status become(std::vector<std::string> arguments);

/// Of a tree that runs: nothing of it is left, neither a process nor a zombie of ours.
void end_tree(pid_t root);

}  // namespace stasis::cli
