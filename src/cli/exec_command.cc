#include "cli/exec_command.h"

#include <paths.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <ranges>
#include <set>
#include <string_view>

#include "cli/shell_job.h"
#include "kernel/proc.h"
#include "kernel/process.h"
#include "kernel/processes.h"

namespace stasis::cli {
namespace {

/// 0, or the errno that execve(2) would give.
int why_not_executable(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0) return errno;
  if (!S_ISREG(status.st_mode)) return EACCES;
  return eaccess(path.c_str(), X_OK) == 0 ? 0 : errno;
}

Error cannot_run(int errno_value, const std::string& name) {
  return Error::system("run --exec-cmd", errno_value, name)
      .advise("name a program that can be executed, after --; nothing was restored");
}

}  // namespace

Status check_command(const std::string& name) {
  if (name.contains('/')) {
    const int problem = why_not_executable(name);
    return problem == 0 ? Status{} : fail(cannot_run(problem, name));
  }
  const char* set = std::getenv("PATH");
  int problem = ENOENT;
  for (const auto part : std::views::split(std::string_view(set != nullptr ? set : _PATH_DEFPATH), ':')) {
    const std::string directory(part.begin(), part.end());
    const int here = why_not_executable(directory.empty() ? name : directory + "/" + name);
    if (here == 0) return {};
    if (here == EACCES) problem = here;  // execvp(3): looked on for, and told if there is no other
  }
  return fail(cannot_run(problem, name));
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> result;
  for (auto& text : strings) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

Status become(std::vector<std::string> arguments) {
  execvp(arguments[0].c_str(), pointers(arguments).data());
  return fail(cannot_run(errno, arguments[0]));
}

void end_tree(pid_t root) {
  const auto descriptor = kernel::pidfd_open(root);
  for (std::set<pid_t> stopped; kernel::stop_descendants(root, stopped);) continue;
  // The root is the last: the orphans of others come to nobody whom we do not know.
  const auto tree = kernel::list_descendants(root);
  for (const pid_t pid : std::views::reverse(tree)) kill(pid, SIGKILL);
  wait_for_root(root);
  // A sibling of ours is waited for by its own parent.
  pollfd ended{descriptor ? descriptor->get() : -1, POLLIN, 0};
  if (descriptor) poll(&ended, 1, -1);
}

}  // namespace stasis::cli
