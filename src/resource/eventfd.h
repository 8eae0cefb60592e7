#pragma once

#include "resource/file_room.h"

namespace stasis::resource {

/// eventfd(2): a counter.
const FileRoom& eventfd_room();

}  // namespace stasis::resource
