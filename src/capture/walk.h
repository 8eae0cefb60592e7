// Looking at a frozen tree from outside: who is who, what is shared, which registers.
#pragma once

#include <vector>

#include "base/result.h"
#include "capture/arch/x86_64/task_code.h"
#include "capture/freezer.h"
#include "kernel/proc.h"
#include "resource/capture_context.h"

namespace stasis::capture {

/// A process of the tree: its place in the Application, and the kernel's task behind it.
struct LiveProcess {
  FrozenProcess frozen;
  resource::ProcessView view;  ///< with the status of every thread
  kernel::StatInfo stat;
  Pid pid;  ///< in the Application
  /// All threads have one descriptor table, one fs context and one pid namespace for their children, which is known
  /// without a look at each. False says nothing.
  bool threads_agree = false;
  /// Of the thread with this index in model::Task::threads. Not of a leader that has ended.
  Tracee& tracee(size_t thread) { return frozen.threads.at(thread - (frozen.leader_ended ? 1 : 0)); }
};

/// What the kernel says of a frozen process and its threads.
struct Look {
  Result<kernel::StatInfo> stat = kernel::StatInfo{};
  std::vector<pid_t> tids;
  std::vector<Result<kernel::StatusInfo>> statuses;
};
/// All of it is read before any of it is judged: reading is most of the work, and is done on all processors. Nothing
/// else should be: the texts are made under the same lock that ptrace(2) takes (sighand_struct.siglock).
std::vector<Look> look_at(const std::vector<FrozenProcess>& frozen);

/// Fills context.application.tasks with ids, names, states and registers, and context.host_to_tree. What stasis does
/// not support is refused in the diagnostics.
Result<std::vector<LiveProcess>> walk(std::vector<FrozenProcess> frozen, std::vector<Look> looks,
                                      resource::CaptureContext& context);

/// Finds out of which processes with many threads these agree, where the kernel lets us.
void compare_threads(std::vector<LiveProcess>& processes);

/// Gives the tasks the ids of their shared objects: descriptor table, fs context, signal handlers, address space.
Status find_sharing(const std::vector<LiveProcess>& processes, resource::CaptureContext& context);

/// Which nested pid namespace each task lives in, and has its children born in; and the ids of dead leaders in there.
/// Refuses processes in namespaces of other kinds than ours.
void look_at_namespaces(const std::vector<LiveProcess>& processes, resource::CaptureContext& context);

/// Refuses children of just one of their parent's threads that a restore cannot have created by that one.
void check_parent_threads(resource::CaptureContext& context);

/// The handler that waits for the thread by what the kernel says of it.
Handler waiting_handler(const kernel::StatusInfo& status, uint64_t signal_mask);

/// Ends the calls in the tasks' registers that a pending signal ends. When handlers and queues are known.
void end_interrupted_calls(std::vector<LiveProcess>& processes, resource::CaptureContext& context);

/// "task 4711 'nginx'" in the ids of the host.
std::string subject_of(const LiveProcess& process);

}  // namespace stasis::capture
