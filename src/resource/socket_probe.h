// What all rooms of sockets ask first.
#pragma once

#include <optional>

#include "resource/capture_context.h"

namespace stasis::resource {

/// The address family of the socket (AF_UNIX …) behind the descriptor; nothing: it is no socket.
std::optional<int> socket_family(const DescriptorProbe&);
/// Those of `wanted` that poll(2) finds now, with POLLERR and POLLHUP.
short poll_events(int fd, short wanted);
/// Says that the socket is of a network namespace that stasis is not in.
void refuse_other_network(CaptureContext&, const DescriptorProbe&);

}  // namespace stasis::resource
