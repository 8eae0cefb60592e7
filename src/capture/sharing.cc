// What tasks share with each other beyond the tree. CLONE_FILES, CLONE_FS, CLONE_SIGHAND and CLONE_VM may hold between
// any two tasks. kcmp(2) orders kernel objects, so each kind is a sorted list of the objects seen so far.
#include <map>

#include <fmt/format.h>

#include "capture/walk.h"
#include "kernel/process.h"

namespace stasis::capture {
namespace {

using kernel::KcmpType;

class Kind {
 public:
  explicit Kind(KcmpType type) : type_(type) {}

  /// The id of the object that this task has.
  Result<ObjectId> identify(pid_t host_pid, resource::CaptureContext& context) {
    size_t low = 0, high = seen_.size();
    while (low < high) {
      const size_t middle = (low + high) / 2;
      const auto order = TRY(kernel::kcmp(host_pid, seen_[middle].host_pid, type_));
      if (order == std::strong_ordering::equal) return seen_[middle].id;
      (order == std::strong_ordering::less ? high : low) = order == std::strong_ordering::less ? middle : middle + 1;
    }
    const ObjectId id = context.new_id();
    seen_.insert(seen_.begin() + static_cast<ptrdiff_t>(low), {host_pid, id});
    return id;
  }

 private:
  struct Seen {
    pid_t host_pid;
    ObjectId id;
  };
  KcmpType type_;
  std::vector<Seen> seen_;
};

/// unshare(2) in one thread of many. Address space and handlers are common by the rules of clone(2).
Status check_threads(const LiveProcess& process, resource::CaptureContext& context) {
  for (const auto& [type, name] :
       {std::pair{KcmpType::files, "descriptor table"}, std::pair{KcmpType::fs, "working directory"}}) {
    for (const pid_t tid : process.view.host_tids) {
      if (tid == process.view.host_pid) continue;
      if (TRY(kernel::kcmp(process.view.host_pid, tid, type)) == std::strong_ordering::equal) continue;
      context.diagnostics.refuse(fmt::format("{}, thread {}", subject_of(process), tid),
                                 fmt::format("has a {} of its own (unshare)", name),
                                 "Threads with objects of their own cannot be dumped");
    }
  }
  return {};
}

}  // namespace

Status find_sharing(const std::vector<LiveProcess>& processes, resource::CaptureContext& context) {
  Kind files(KcmpType::files), fs(KcmpType::fs), memory(KcmpType::vm);
  std::map<ObjectId, Kind> handlers_in;
  for (const auto& process : processes) {
    if (process.frozen.zombie) continue;
    auto* task = context.application.find(process.pid);
    const pid_t host_pid = process.view.host_pid;
    task->address_space = TRY(memory.identify(host_pid, context));
    task->descriptors = TRY(files.identify(host_pid, context));
    task->fs = TRY(fs.identify(host_pid, context));
    // Handlers can be shared only where memory is (clone(2), CLONE_SIGHAND), and execve leaves both.
    auto& handlers = handlers_in.try_emplace(task->address_space, KcmpType::sighand).first->second;
    task->handlers = TRY(handlers.identify(host_pid, context));
    TRY(check_threads(process, context));
  }
  return {};
}

}  // namespace stasis::capture
