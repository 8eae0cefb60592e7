#pragma once

#include <fmt/format.h>

#include "resource/task_room.h"

namespace stasis::resource {

const TaskRoom& process_attributes_room();

}  // namespace stasis::resource
