// Packet sockets (packet(7)): what devices receive and send, as it is.
#pragma once

#include "resource/file_room.h"

namespace stasis::resource {

const FileRoom& packet_socket_room();

}  // namespace stasis::resource
