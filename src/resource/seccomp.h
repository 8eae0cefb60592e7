#pragma once

#include <fmt/format.h>

#include "resource/task_room.h"

namespace stasis::resource {

const TaskRoom& seccomp_room();
/// The same for threads that end without the right to install filters: contributes before the final capabilities.
const TaskRoom& early_seccomp_room();

}  // namespace stasis::resource
