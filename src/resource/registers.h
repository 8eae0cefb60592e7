// The room for registers; implemented by arch/<architecture>/registers.cc.
#pragma once

#include <fmt/format.h>

#include "resource/task_room.h"

namespace stasis::resource {

const TaskRoom& registers_room();

}  // namespace stasis::resource
