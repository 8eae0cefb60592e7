#pragma once

#include "resource/file_room.h"

namespace stasis::resource {

/// signalfd(2): signals that are read.
const FileRoom& signalfd_room();

}  // namespace stasis::resource
