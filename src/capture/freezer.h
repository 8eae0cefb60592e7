// Stopping a whole tree: PTRACE_SEIZE and PTRACE_INTERRUPT over its tasks until nothing of it runs unseen.
//
// A process is *whole* when all its threads were stopped before its threads and children were listed: it cannot have
// got more since. Only the death of another process can still give it children (they pass to a subreaper), so when
// anybody has died meanwhile all are listed once more; and at the end, because it may have been one that was not known.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/diagnostics.h"
#include "base/result.h"
#include "capture/tracee.h"
#include "capture/waiting.h"

namespace stasis::capture {

struct FrozenProcess {
  pid_t host_pid = 0;
  pid_t parent_thread = 0;      ///< on the host, of the process that it is a child of
  bool zombie = false;          ///< nothing is left to stop: threads is empty
  bool refused = false;         ///< not (wholly) ours; the diagnostics say why
  bool whole = false;           ///< see above
  bool leader_ended = false;    ///< while other threads go on
  std::vector<Tracee> threads;  ///< those that live, leader first
  /// The signal of the group-stop it was found in; 0: it ran.
  int stop_signal() const;
  /// The thread through which the kernel shows what the process has. A leader that has ended has let go of memory,
  /// files and namespaces (kernel/exit.c, do_exit): its entries in /proc are empty then, those of the others are not.
  pid_t witness() const { return leader_ended && !threads.empty() ? threads.front().tid() : host_pid; }
};

using AtPoint = std::function<void(std::string_view)>;

class Freezer {
 public:
  Freezer(Diagnostics& diagnostics, const AtPoint& at_point, Clock::time_point deadline)
      : diagnostics_(diagnostics), at_point_(at_point), deadline_(deadline) {}

  /// Every task of the tree stopped, parents before their children. What cannot be stopped is refused in the
  /// diagnostics (then the answer is incomplete); only a root that cannot be had is an Error.
  Result<std::vector<FrozenProcess>> freeze(pid_t root);

 private:
  Status check_root(pid_t root) const;
  Result<bool> look();
  Result<bool> look_for_orphans();
  Result<bool> complete(size_t index);
  Result<bool> adopt_threads(size_t index);
  Result<bool> adopt_children(size_t index, std::span<const pid_t> tids);
  Status cannot_seize(size_t index, pid_t tid, const Error& reason);
  Status settle_all();
  Status settle(size_t index, Tracee& thread);
  Status follow_execve(size_t index, Tracee& thread);
  Result<bool> settle_by_deadline(size_t index, Tracee& slow);
  Status settle_slow(size_t index, Tracee& slow);
  Status run_vfork_child_of(const Tracee& parent, const std::function<bool()>& until);
  void forget_the_dead();

  Diagnostics& diagnostics_;
  const AtPoint& at_point_;
  Clock::time_point deadline_;
  Waiting waiting_;
  std::vector<FrozenProcess> processes_;
  std::unordered_set<pid_t> known_pids_, known_tids_;
  bool somebody_died_ = false;  ///< since all were last listed
};

}  // namespace stasis::capture
