// BPF maps (bpf(2)).
#pragma once

#include "resource/file_room.h"

namespace stasis::resource {

const FileRoom& bpf_map_room();

}  // namespace stasis::resource
