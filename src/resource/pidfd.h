#pragma once

#include "resource/file_room.h"

namespace stasis::resource {

/// pidfd_open(2): a process.
const FileRoom& pidfd_room();

}  // namespace stasis::resource
