// The links of /proc/PID/map_files lead to what is mapped, even if it has no name.
#pragma once

#include "base/result.h"

namespace stasis::kernel {

/// Follows one of our own. Seeing them is no question of rights; following them needs CAP_CHECKPOINT_RESTORE or
/// CAP_SYS_ADMIN in the first user namespace (proc_map_files_get_link, fs/proc/base.c).
Status follow_map_files();

}  // namespace stasis::kernel
