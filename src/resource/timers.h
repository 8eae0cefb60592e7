#pragma once

#include <fmt/format.h>

#include "resource/task_room.h"

namespace stasis::resource {

const TaskRoom& timers_room();

}  // namespace stasis::resource
