#include "kernel/processes.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/nsfs.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>

#include "base/parallel.h"
#include "base/unique_fd.h"
#include "kernel/mounts.h"
#include "kernel/proc.h"
#include "kernel/process.h"

namespace stasis::kernel {
namespace {

/// struct pidfd_info as of its first version (linux/pidfd.h), which later kernels still take.
struct PidfdInfo {
  uint64_t mask = 0, cgroup = 0;
  uint32_t pid = 0, thread_group = 0, parent = 0;
  uint32_t ids[8]{};
  int32_t exit_code = 0;
};
static_assert(sizeof(PidfdInfo) == 64);
constexpr unsigned long get_info = _IOWR(0xFF, 11, PidfdInfo);

bool hides_processes(const MountInfo& mount) {
  return mount.type == "proc" && mount.point == "/proc" && mount.options.find("hidepid=") != std::string::npos;
}

/// 0: the process has ended; nothing: it cannot be asked.
std::optional<pid_t> parent_of(pid_t pid) {
  const auto pidfd = pidfd_open(pid);
  if (!pidfd) return pidfd.error().code() == ErrorCode::gone ? std::optional<pid_t>(0) : std::nullopt;
  PidfdInfo info;
  if (ioctl(pidfd->get(), get_info, &info) == 0) return static_cast<pid_t>(info.parent);
  return errno == ESRCH ? std::optional<pid_t>(0) : std::nullopt;
}

}  // namespace

std::optional<bool> has_children(pid_t pid, size_t most) {
  const auto processes = list_processes();
  if (!processes || processes->size() > most) return std::nullopt;
  const auto mounts = read_mountinfo();
  if (!mounts || std::ranges::any_of(*mounts, hides_processes)) return std::nullopt;
  std::atomic<bool> found = false, unknown = false;
  (void)parallel_for(processes->size(), [&](size_t index) -> Status {
    const auto parent = parent_of((*processes)[index]);
    if (!parent) unknown = true;
    if (parent == pid) found = true;
    return {};
  });
  return found ? std::optional<bool>(true) : unknown ? std::nullopt : std::optional<bool>(false);
}

bool stop_descendants(pid_t root, std::set<pid_t>& stopped) {
  bool found = false;
  for (const pid_t pid : list_descendants(root)) {
    if (pid == getpid() || !stopped.insert(pid).second) continue;
    found = kill(pid, SIGSTOP) == 0 || found;
  }
  return found;
}

Result<std::string> outer_pid_namespace(pid_t pid) {
  const auto path = fmt::format("/proc/{}/ns/pid", pid);
  const UniqueFd own(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!own.valid()) return fail_errno("open", path);
  const UniqueFd outer(ioctl(own.get(), NS_GET_PARENT));
  if (!outer.valid()) return fail_errno("NS_GET_PARENT", path);
  struct stat about{};
  if (fstat(outer.get(), &about) != 0) return fail_errno("fstat", path);
  return fmt::format("pid:[{}]", about.st_ino);
}

}  // namespace stasis::kernel
