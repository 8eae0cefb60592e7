// Namespaces: the tree must live in ours, except that it may have a pid namespace of its own, and others nested in it,
// and one IPC namespace.
#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string>

#include "base/parallel.h"
#include "base/unique_fd.h"
#include "capture/walk.h"
#include "model/pid_namespaces.h"

namespace stasis::capture {
namespace {

struct Namespace {
  const char* file;
  const char* name;
};
/// Compared with ours.
constexpr Namespace shared_with_us[] = {
    {"user", "user"},
    {"mnt", "mount"},
    {"net", "network"},
    {"uts", "UTS"},
    {"cgroup", "cgroup"},
    {"time", "time"},
    {"time_for_children", "children's time"},
};
constexpr Namespace shared_with_the_root = {"ipc", "IPC"};

/// The namespaces of one process.
class NamespaceLinks {
 public:
  explicit NamespaceLinks(const std::string& who)
      : directory_(open(fmt::format("/proc/{}/ns", who).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)) {}
  /// Its links can be read, as far as they lead anywhere.
  bool reachable() const { return !id("pid").empty(); }
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

class PidNamespaceFinder {
 public:
  PidNamespaceFinder(const std::vector<LiveProcess>& processes, resource::CaptureContext& context)
      : processes_(processes), context_(context) {}

  void run() {
    name_namespaces();
    for (size_t index = 0; index < processes_.size(); ++index) place(processes_[index], task(index));
    if (context_.diagnostics.refused()) return;
    note_dead_leaders();
    if (const auto problem = model::PidNamespaces(context_.application).problem(); !problem.empty())
      context_.diagnostics.refuse("the tree's pid namespaces", problem, "Such a tree cannot be dumped");
  }

 private:
  model::Task& task(size_t index) { return context_.application.tasks[index]; }
  static NamespaceLinks links_of(const LiveProcess& process) {
    return NamespaceLinks(fmt::format("{}", process.view.host_pid));
  }

  /// The root's, and those that processes of the tree are the inits of.
  void name_namespaces() {
    inits_[links_of(processes_.front()).id("pid")] = Pid{0};
    for (size_t index = 0; index < processes_.size(); ++index) {
      const auto& nested = task(index).nested_pids;
      if (!nested.empty() && nested.back() == 1) inits_[links_of(processes_[index]).id("pid")] = task(index).pid;
    }
  }

  /// A zombie has no children to come; what it lives in can still be read.
  void place(const LiveProcess& process, model::Task& task) {
    if (process.frozen.zombie && task.nested_pids.empty()) return;
    const auto own = inits_.find(links_of(process).id("pid"));
    if (own == inits_.end()) {
      context_.diagnostics.refuse(subject_of(process), "lives in a pid namespace whose init is not part of the tree",
                                  "Dump a tree that contains the init, too, or neither");
      return;
    }
    task.pid_namespace = own->second;
    if (process.frozen.zombie) return;
    for (size_t i = 0; i < task.threads.size(); ++i) {
      if (!task.threads[i].has_ended()) place_children(process, task, i);
    }
  }

  /// Each thread has its own. The link leads nowhere as long as nobody has been born there (kernel/pid_namespace.c,
  /// pidns_for_children_get). A thread that has ended has none.
  void place_children(const LiveProcess& process, model::Task& task, size_t thread) {
    const NamespaceLinks links(fmt::format("{}", process.view.host_tids[thread]));
    const auto link = links.id("pid_for_children");
    const auto childrens = inits_.find(link);
    if (link.empty() && links.reachable()) {
      task.threads[thread].childrens_namespace = model::empty_namespace;
    } else if (childrens == inits_.end()) {
      context_.diagnostics.refuse(
          subject_of(process),
          "has left its pid namespace for its children (unshare, setns), to one whose init is not in the tree, or has "
          "ended",
          "Dump a tree that contains the init, or let the task enter its own namespace again");
    } else if (childrens->second != task.pid_namespace) {
      task.threads[thread].childrens_namespace = childrens->second;
    }
  }

  void note_dead_leaders() {
    const size_t level = processes_.front().view.statuses.front()->ns_pid.size();
    const auto nested = [&](const std::vector<pid_t>& ids) {
      return std::vector<pid_t>(ids.begin() + static_cast<ptrdiff_t>(level), ids.end());
    };
    for (size_t index = 0; index < processes_.size(); ++index) {
      if (task(index).nested_pids.empty()) continue;
      const auto& status = *processes_[index].view.statuses.front();
      model::note_dead_leader(context_.application, task(index), task(index).group, nested(status.ns_pgid));
      model::note_dead_leader(context_.application, task(index), task(index).session, nested(status.ns_sid));
    }
  }

  const std::vector<LiveProcess>& processes_;
  resource::CaptureContext& context_;
  std::map<std::string, Pid> inits_;  ///< by what the namespace's link says
};

}  // namespace

void find_pid_namespaces(const std::vector<LiveProcess>& processes, resource::CaptureContext& context) {
  PidNamespaceFinder(processes, context).run();
}

Status check_namespaces(const std::vector<LiveProcess>& processes, resource::CaptureContext& context) {
  std::vector<std::pair<Namespace, std::string>> expected;
  const NamespaceLinks ours("self"), roots(fmt::format("{}", processes.front().view.witness()));
  for (const auto& kind : shared_with_us) expected.emplace_back(kind, ours.id(kind.file));
  expected.emplace_back(shared_with_the_root, roots.id(shared_with_the_root.file));
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
