// The very last commands of a Program: what others notice.
#pragma once

#include <sys/types.h>

#include <map>

#include "base/result.h"
#include "base/types.h"
#include "plan/program.h"

namespace stasis::execute {

/// END_REPAIR, all of them: the connections of a tree that is complete and stopped send and answer from here on.
/// `host_pids`: of each task a thread that lives, as we see it. `fail_at_command` as in ExecuteOptions.
Status end_repairs(const plan::Program&, const std::map<Pid, pid_t>& host_pids, int fail_at_command);

}  // namespace stasis::execute
