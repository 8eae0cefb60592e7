// Open files of nsfs: /proc/PID/ns/* (namespaces(7)).
#pragma once

#include "resource/file_room.h"

namespace stasis::resource {

const FileRoom& namespace_file_room();

}  // namespace stasis::resource
