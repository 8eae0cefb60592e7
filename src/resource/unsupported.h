#pragma once

#include "resource/file_room.h"

namespace stasis::resource {

/// Takes every descriptor that no other room takes, and says what it is and why it cannot be saved.
const FileRoom& unsupported_room();

}  // namespace stasis::resource
