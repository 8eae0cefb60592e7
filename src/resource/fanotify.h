#pragma once

#include "resource/file_room.h"

namespace stasis::resource {

/// fanotify(7): watches files, mounts and file systems.
const FileRoom& fanotify_room();

}  // namespace stasis::resource
