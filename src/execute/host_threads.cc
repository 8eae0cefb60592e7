#include "execute/host_threads.h"

#include <vector>

#include "kernel/proc.h"

namespace stasis::execute {

std::map<pid_t, HostThread> host_threads(pid_t host_root) {
  std::map<pid_t, HostThread> found;
  const auto root = kernel::read_status(host_root);
  const size_t level = root ? root->ns_pid.size() : 0;
  if (level == 0) return found;
  for (const pid_t pid : kernel::list_descendants(host_root)) {
    for (const pid_t tid : kernel::list_threads(pid).value_or(std::vector<pid_t>{})) {
      const auto status = kernel::read_thread_status(pid, tid);
      if (status && status->ns_pid.size() >= level) found[status->ns_pid[level - 1]] = {pid, tid};
    }
  }
  return found;
}

}  // namespace stasis::execute
