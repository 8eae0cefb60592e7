// Namespaces: the tree must live in ours, except that it may have a pid namespace of its own.
#include <sys/stat.h>

#include <fmt/format.h>

#include "capture/walk.h"

namespace stasis::capture {
namespace {

struct Namespace {
  const char* file;
  const char* name;
};
constexpr Namespace shared_with_us[] = {
    {"user", "user"}, {"mnt", "mount"}, {"net", "network"}, {"ipc", "IPC"}, {"uts", "UTS"}, {"time", "time"}, {"cgroup", "cgroup"},
    {"time_for_children", "children's time"},
};
/// Compared with the root's.
constexpr Namespace shared_with_root[] = {{"pid", "pid"}, {"pid_for_children", "children's pid"}};

/// Inode of a namespace file; 0 if this kernel does not have the kind.
Result<ino_t> namespace_id(const std::string& who, const char* file) {
  struct stat found{};
  const std::string path = fmt::format("/proc/{}/ns/{}", who, file);
  if (stat(path.c_str(), &found) == 0) return found.st_ino;
  if (errno == ENOENT) return 0;
  return fail_errno("stat", path);
}

}  // namespace

Status check_namespaces(const std::vector<LiveProcess>& processes, resource::CaptureContext& context) {
  const auto check = [&](const Namespace& kind, const std::string& reference) -> Status {
    const ino_t expected = TRY(namespace_id(reference, kind.file));
    for (const auto& process : processes) {
      if (process.frozen.zombie) continue;
      const auto found = namespace_id(fmt::format("{}", process.view.host_pid), kind.file);
      // A task in a foreign user namespace may be out of reach altogether.
      if (found && *found == expected) continue;
      context.diagnostics.refuse(subject_of(process), fmt::format("lives in another {} namespace", kind.name),
                                 fmt::format("Run stasis inside it: nsenter --target {} --all", process.view.host_pid));
    }
    return {};
  };
  for (const auto& kind : shared_with_us) TRY(check(kind, "self"));
  // The init of a namespace was put there as a child: its pid_for_children equals its pid.
  for (const auto& kind : shared_with_root) TRY(check(kind, fmt::format("{}", processes.front().view.host_pid)));
  return {};
}

}  // namespace stasis::capture
