#pragma once

#include "resource/file_room.h"

namespace stasis::resource {

/// inotify(7): watches files.
const FileRoom& inotify_room();

}  // namespace stasis::resource
