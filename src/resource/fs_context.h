#pragma once

#include "resource/task_room.h"

namespace stasis::resource {

/// Working directory, root directory and umask.
const TaskRoom& fs_context_room();

}  // namespace stasis::resource
