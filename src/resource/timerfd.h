#pragma once

#include "resource/file_room.h"

namespace stasis::resource {

/// timerfd_create(2): a timer that is read.
const FileRoom& timerfd_room();

}  // namespace stasis::resource
