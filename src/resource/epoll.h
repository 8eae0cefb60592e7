#pragma once

#include "resource/file_room.h"

namespace stasis::resource {

/// epoll(7): waits for events of other descriptors.
const FileRoom& epoll_room();

}  // namespace stasis::resource
