// Packet sockets (packet(7)): what devices receive and send, as it is.
#pragma once

#include "kernel/proc.h"
#include "resource/file_room.h"

namespace stasis::resource {

const FileRoom& packet_socket_room();
/// The socket whose rings are mapped there, once all descriptors are known. What is wrong with them goes to the
/// diagnostics, as does that nobody has it open.
ObjectId find_packet_rings(CaptureContext&, const kernel::MapsEntry&, const std::string& subject);

}  // namespace stasis::resource
