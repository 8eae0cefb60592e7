// The room of address spaces: what only the task can say about its memory, mm-<pid>.img, flags of the whole space.
#pragma once

#include "resource/task_room.h"

namespace stasis::resource {

const TaskRoom& memory_room();

}  // namespace stasis::resource
