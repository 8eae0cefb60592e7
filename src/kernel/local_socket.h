// Conversations of processes of ours over unix sockets: packets that may carry a descriptor.
#pragma once

#include "base/result.h"
#include "base/types.h"
#include "base/unique_fd.h"

namespace stasis::kernel {

/// True if the other side is of our own user, or root's.
bool is_trusted_peer(int socket);

Status send_packet(int socket, ByteView bytes, int descriptor = -1);

struct Packet {
  Bytes bytes;
  UniqueFd descriptor;
};
/// Waits for one of at most this size. ErrorCode::gone at the end of the conversation.
Result<Packet> receive_packet(int socket, size_t largest);

}  // namespace stasis::kernel
