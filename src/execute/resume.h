// The last step of a restore: every thread is parked in the agent; it gets its final registers and is let go.
#pragma once

#include <sys/types.h>

#include "agent/area.h"
#include "base/result.h"
#include "model/application.h"

namespace stasis::execute {

/// Seizes all threads, sets registers, extended state and signal masks, unmaps the agent area, detaches.
Status resume_tree(const model::Application&, pid_t host_root, AddressRange agent_area, const agent::Area& area,
                   bool leave_stopped);

}  // namespace stasis::execute
