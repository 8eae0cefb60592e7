// The last step of a restore: every thread is parked in the agent; it gets its final registers and is let go.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>

#include "base/result.h"
#include "base/types.h"
#include "model/application.h"

namespace stasis::execute {

class Resumption {
 public:
  static std::unique_ptr<Resumption> of(const model::Application&, AddressRange agent_area);
  virtual ~Resumption() = default;
  /// Stops some of the threads that are ready while others are still being built; false: there are none. A failure is
  /// met again by stop_all.
  virtual bool stop_ready(const std::function<bool(Pid, Tid)>& is_ready) = 0;
  /// Stops all threads. From here on they do not outlive stasis (PTRACE_O_EXITKILL), until they are let go.
  virtual Status stop_all(pid_t host_root) = 0;
  /// Sets registers and extended state, unmaps the agent area, calls `at_last` with a living thread of each task, sets
  /// signal masks, detaches.
  virtual Status let_go(bool leave_stopped, const std::function<Status(const std::map<Pid, pid_t>&)>& at_last) = 0;
};

}  // namespace stasis::execute
