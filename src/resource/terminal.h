// Terminals of a shell job: the session that owns them is outside of the tree, so they are inherited again at restore.
#pragma once

#include "resource/file_room.h"

namespace stasis::resource {

const FileRoom& terminal_room();

}  // namespace stasis::resource
