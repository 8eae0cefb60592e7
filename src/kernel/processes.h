// All processes of the machine, as far as /proc shows them.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"

namespace stasis::kernel {

Result<std::vector<pid_t>> list_processes();

/// Whether a process has children, zombies included: each process of the machine is asked for its parent
/// (PIDFD_GET_INFO, Linux 6.13), which takes half as long as a look at the children of one thread. Nothing: that is not
/// known, because they are more than `most`, the kernel does not tell, or /proc may hide some (hidepid, proc(5)).
std::optional<bool> has_children(pid_t pid, size_t most);

/// Stops what is below a process, itself included, and not in `stopped` yet, but not us; true: there was somebody. Who
/// stands still creates nobody: after a round that finds nobody new all are known.
bool stop_descendants(pid_t root, std::set<pid_t>& stopped);

/// Of the pid namespace that the one of a process, which may be a zombie, lies in: what a link to it would say,
/// "pid:[4026531836]".
Result<std::string> outer_pid_namespace(pid_t pid);

}  // namespace stasis::kernel
