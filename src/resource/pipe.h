// Pipes and FIFOs: one buffer, any number of open descriptions at either end.
#pragma once

#include "resource/file_room.h"

namespace stasis::resource {

const FileRoom& pipe_room();
const FileRoom& fifo_room();

}  // namespace stasis::resource
