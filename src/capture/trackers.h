// Userfaultfds of tasks, made by the tasks themselves: only an address space's own task can make one for it.
#pragma once

#include <map>
#include <vector>

#include "base/result.h"
#include "capture/freezer.h"
#include "capture/walk.h"
#include "kernel/userfaultfd.h"
#include "model/application.h"

namespace stasis::capture {

/// One for each of the address spaces. The agent makes it, we take it (pidfd_getfd), and the agent closes it again
/// before it leaves, also if we die meanwhile: the task never sees a descriptor of ours.
Result<std::map<ObjectId, kernel::Userfaultfd>> make_userfaultfds(std::vector<LiveProcess>& processes,
                                                                  const model::Application& application,
                                                                  const std::vector<ObjectId>& address_spaces,
                                                                  const AtPoint& at_point, Clock::time_point deadline);

}  // namespace stasis::capture
