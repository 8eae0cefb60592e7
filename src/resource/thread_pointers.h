#pragma once

#include <fmt/format.h>

#include "resource/task_room.h"

namespace stasis::resource {

const TaskRoom& thread_pointers_room();

}  // namespace stasis::resource
