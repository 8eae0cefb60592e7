// What is left of a TCP connection that has ended while its socket is open (TCP_CLOSE): what came and has not been
// received, and an error that waits to be reported. Repair mode knows only connections, so a restore makes one, with
// nobody, and a segment of that peer ends it (RST).
#pragma once

#include "resource/capture_context.h"
#include "resource/inet_socket.h"
#include "sockets_more.pb.h"

namespace stasis::resource {

/// Of a TCP socket without a connection; what cannot be kept becomes a diagnostic.
Status look_at_ended(CaptureContext&, const std::string& subject, int fd, InetSocket&);

void encode_ended(const InetSocket&, socket_more_entry&);
Status decode_ended(const socket_more_entry&, InetSocket&);

}  // namespace stasis::resource
