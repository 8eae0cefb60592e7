// Namespaces: the tree must live in ours, except that it may have a pid namespace of its own.
#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/parallel.h"
#include "base/unique_fd.h"
#include "capture/walk.h"

namespace stasis::capture {
namespace {

struct Namespace {
  const char* file;
  const char* name;
};
/// Compared with ours.
constexpr Namespace shared_with_us[] = {
    {"user", "user"}, {"mnt", "mount"},     {"net", "network"}, {"ipc", "IPC"},
    {"uts", "UTS"},   {"cgroup", "cgroup"}, {"time", "time"},   {"time_for_children", "children's time"},
};
/// Compared with the root's. The init of a namespace was born in it: its pid_for_children equals its pid.
constexpr Namespace shared_with_root[] = {{"pid", "pid"}, {"pid_for_children", "children's pid"}};

/// The namespaces of one process.
class NamespaceLinks {
 public:
  explicit NamespaceLinks(const std::string& who)
      : directory_(open(fmt::format("/proc/{}/ns", who).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)) {}
  /// "uts:[4026531838]"; empty: this kernel has no such kind, or the process is out of reach. Reading the link is
  /// quicker than following it, which makes an inode.
  std::string id(const char* file) const {
    if (!directory_.valid()) return {};
    char link[64];
    const ssize_t length = readlinkat(directory_.get(), file, link, sizeof link);
    return length > 0 ? std::string(link, static_cast<size_t>(length)) : std::string();
  }

 private:
  UniqueFd directory_;
};

}  // namespace

Status check_namespaces(const std::vector<LiveProcess>& processes, resource::CaptureContext& context) {
  std::vector<std::pair<Namespace, std::string>> expected;
  const NamespaceLinks ours("self");
  const NamespaceLinks roots(fmt::format("{}", processes.front().view.witness()));
  for (const auto& kind : shared_with_us) expected.emplace_back(kind, ours.id(kind.file));
  for (const auto& kind : shared_with_root) expected.emplace_back(kind, roots.id(kind.file));
  std::vector<std::vector<const char*>> foreign(processes.size());  // names of kinds
  TRY(parallel_for(processes.size(), [&](size_t index) -> Status {
    if (processes[index].frozen.zombie) return {};
    const NamespaceLinks links(fmt::format("{}", processes[index].view.witness()));
    for (const auto& [kind, id] : expected) {
      if (links.id(kind.file) != id) foreign[index].push_back(kind.name);
    }
    return {};
  }));
  for (size_t index = 0; index < processes.size(); ++index) {
    for (const char* kind : foreign[index]) {
      context.diagnostics.refuse(
          subject_of(processes[index]), fmt::format("lives in another {} namespace", kind),
          fmt::format("Run stasis inside it: nsenter --target {} --all", processes[index].view.witness()));
    }
  }
  return {};
}

}  // namespace stasis::capture
