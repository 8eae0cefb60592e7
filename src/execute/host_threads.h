// Threads of a tree, by the numbers of its own pid namespace.
#pragma once

#include <sys/types.h>

#include <map>

namespace stasis::execute {

struct HostThread {
  pid_t pid = 0, tid = 0;  ///< as we see them
};

/// Those below the root of a tree, itself included, by the numbers that its namespace has for them. Those of nested
/// namespaces have more numbers after these (NSpid in /proc/PID/status). Who is gone, or gets another parent while we
/// look, may be missing.
std::map<pid_t, HostThread> host_threads(pid_t host_root);

}  // namespace stasis::execute
