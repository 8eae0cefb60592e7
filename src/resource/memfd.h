#pragma once

#include "resource/file_room.h"

namespace stasis::resource {

/// Files of memfd_create(2): name, size, seals, content; shared by descriptors and mappings.
const FileRoom& memfd_room();

}  // namespace stasis::resource
