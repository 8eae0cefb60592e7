// Netlink sockets (netlink(7)), bound or not, with their groups.
#pragma once

#include "resource/file_room.h"

namespace stasis::resource {

const FileRoom& netlink_socket_room();

}  // namespace stasis::resource
