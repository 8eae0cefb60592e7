// Namespaces: the tree must live in ours, except that it may have a pid namespace of its own, and others nested in it,
// and one IPC namespace.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <string>

#include "base/parallel.h"
#include "capture/walk.h"
#include "kernel/proc.h"
#include "kernel/processes.h"
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

/// What the links of a process and its threads say ("uts:[4026531838]"; empty: this kernel has no such kind, or the
/// process is out of reach). Reading a link is quicker than following it, which makes an inode.
struct NamespaceIds {
  std::string pid;
  std::vector<std::string> childrens;  ///< pid namespaces, of each thread
  std::array<std::string, std::size(shared_with_us)> with_us;
  std::string with_the_root;
};

std::string id_of(const std::string& directory, const char* kind) {
  return kernel::read_link(fmt::format("{}/ns/{}", directory, kind)).value_or("");
}

/// Of all processes that are more than their ids, on all processors.
std::vector<NamespaceIds> read_namespaces(const std::vector<LiveProcess>& processes) {
  std::vector<NamespaceIds> found(processes.size());
  std::vector<std::pair<size_t, size_t>> threads;
  for (size_t index = 0; index < processes.size(); ++index) {
    const auto& view = processes[index].view;
    found[index].childrens.resize(view.host_tids.size());
    const size_t to_read = processes[index].threads_agree ? 1 : view.host_tids.size();
    for (size_t thread = 0; thread < to_read; ++thread) threads.emplace_back(index, thread);
  }
  const auto read = [&](size_t place) -> Status {
    const auto [index, thread] = threads[place];
    const auto& view = processes[index].view;
    auto& ids = found[index];
    // The directory of a thread is in the kernel's cache already, with its status.
    const auto directory_of = [&](pid_t tid) { return fmt::format("/proc/{}/task/{}", view.host_pid, tid); };
    ids.childrens[thread] = id_of(directory_of(view.host_tids[thread]), "pid_for_children");
    if (thread != 0) return {};
    ids.pid = id_of(directory_of(view.host_pid), "pid");
    const auto witness = directory_of(view.witness());
    for (size_t kind = 0; kind < std::size(shared_with_us); ++kind)
      ids.with_us[kind] = id_of(witness, shared_with_us[kind].file);
    ids.with_the_root = id_of(witness, shared_with_the_root.file);
    return {};
  };
  (void)parallel_for(threads.size(), read);
  for (size_t index = 0; index < processes.size(); ++index) {
    auto& childrens = found[index].childrens;
    if (processes[index].threads_agree) childrens.assign(childrens.size(), std::string(childrens.front()));
  }
  return found;
}

class PidNamespaceFinder {
 public:
  PidNamespaceFinder(const std::vector<LiveProcess>& processes, const std::vector<NamespaceIds>& ids,
                     resource::CaptureContext& context)
      : processes_(processes), ids_(ids), context_(context) {}

  void run() {
    name_namespaces();
    for (size_t index = 0; index < processes_.size(); ++index) place(index);
    for (size_t index = 0; index < processes_.size(); ++index) place_around(index);
    if (context_.diagnostics.refused()) return;
    note_dead_leaders();
    if (const auto problem = model::PidNamespaces(context_.application).problem(); !problem.empty())
      context_.diagnostics.refuse("the tree's pid namespaces", problem, "Such a tree cannot be dumped");
  }

 private:
  model::Task& task(size_t index) { return context_.application.tasks[index]; }

  /// The root's, and those that processes of the tree are the inits of.
  void name_namespaces() {
    inits_[ids_.front().pid] = Pid{0};
    for (size_t index = 0; index < processes_.size(); ++index) {
      const auto& nested = task(index).nested_pids;
      if (!nested.empty() && nested.back() == 1) inits_[ids_[index].pid] = task(index).pid;
    }
  }

  /// A zombie has no children to come; what it lives in can still be read.
  void place(size_t index) {
    const auto& process = processes_[index];
    auto& task = this->task(index);
    if (process.frozen.zombie && task.nested_pids.empty()) return;
    const auto own = inits_.find(ids_[index].pid);
    if (own == inits_.end()) {
      context_.diagnostics.refuse(subject_of(process), "lives in a pid namespace whose init is not part of the tree",
                                  "Dump a tree that contains the init, too, or neither");
      return;
    }
    task.pid_namespace = own->second;
    if (process.frozen.zombie) return;
    for (size_t i = 0; i < task.threads.size(); ++i) {
      if (!task.threads[i].has_ended()) place_children(index, i);
    }
  }

  /// A sibling may have begun an init's namespace further inside than the parent lives.
  void place_around(size_t index) {
    auto& task = this->task(index);
    if (!model::is_begun_for_sibling(context_.application, task)) return;
    const auto outer = inits_.find(kernel::outer_pid_namespace(processes_[index].view.host_pid).value_or(""));
    if (outer != inits_.end())
      task.outer_namespace = outer->second;
    else
      context_.diagnostics.refuse(subject_of(processes_[index]),
                                  "is the init of a pid namespace in one whose init is not part of the tree",
                                  "Dump a tree that contains the init, too, or neither");
  }

  /// Each thread has its own. The link leads nowhere as long as nobody has been born there (kernel/pid_namespace.c,
  /// pidns_for_children_get). A thread that has ended has none.
  void place_children(size_t index, size_t thread) {
    const auto& process = processes_[index];
    auto& task = this->task(index);
    const auto& link = ids_[index].childrens[thread];
    const auto childrens = inits_.find(link);
    if (link.empty() && !ids_[index].pid.empty()) {
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
  const std::vector<NamespaceIds>& ids_;
  resource::CaptureContext& context_;
  std::map<std::string, Pid> inits_;  ///< by what the namespace's link says
};

void check_namespaces(const std::vector<LiveProcess>& processes, const std::vector<NamespaceIds>& ids,
                      resource::CaptureContext& context) {
  std::vector<std::string> ours;
  for (const auto& kind : shared_with_us) ours.push_back(id_of("/proc/self", kind.file));
  for (size_t index = 0; index < processes.size(); ++index) {
    if (processes[index].frozen.zombie) continue;
    const auto expect = [&](const Namespace& kind, const std::string& found, const std::string& expected) {
      if (found == expected) return;
      context.diagnostics.refuse(
          subject_of(processes[index]), fmt::format("lives in another {} namespace", kind.name),
          fmt::format("Run stasis inside it: nsenter --target {} --all", processes[index].view.witness()));
    };
    for (size_t kind = 0; kind < ours.size(); ++kind)
      expect(shared_with_us[kind], ids[index].with_us[kind], ours[kind]);
    expect(shared_with_the_root, ids[index].with_the_root, ids.front().with_the_root);
  }
}

}  // namespace

void look_at_namespaces(const std::vector<LiveProcess>& processes, resource::CaptureContext& context) {
  const auto ids = read_namespaces(processes);
  PidNamespaceFinder(processes, ids, context).run();
  check_namespaces(processes, ids, context);
}

}  // namespace stasis::capture
