#include "kernel/local_socket.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace stasis::kernel {

bool is_trusted_peer(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return false;
  return peer.uid == geteuid() || peer.uid == 0;
}

Status send_packet(int socket, ByteView bytes, int descriptor) {
  iovec part{const_cast<uint8_t*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) char space[CMSG_SPACE(sizeof(int))]{};
  msghdr header{};
  header.msg_iov = &part, header.msg_iovlen = 1;
  if (descriptor >= 0) {
    header.msg_control = space, header.msg_controllen = sizeof space;
    cmsghdr* control = CMSG_FIRSTHDR(&header);
    control->cmsg_level = SOL_SOCKET, control->cmsg_type = SCM_RIGHTS, control->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(control), &descriptor, sizeof descriptor);
  }
  while (sendmsg(socket, &header, MSG_NOSIGNAL) < 0) {
    if (errno == EPIPE || errno == ECONNRESET) return fail(Error::gone("send a message", "the other side"));
    if (errno != EINTR) return fail_errno("send a message");
  }
  return {};
}

Result<Packet> receive_packet(int socket, size_t largest) {
  Packet packet{Bytes(largest), {}};
  iovec part{packet.bytes.data(), packet.bytes.size()};
  alignas(cmsghdr) char space[CMSG_SPACE(sizeof(int))]{};
  msghdr header{};
  header.msg_iov = &part, header.msg_iovlen = 1, header.msg_control = space, header.msg_controllen = sizeof space;
  ssize_t got = 0;
  do got = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
  while (got < 0 && errno == EINTR);
  if (got == 0 || (got < 0 && errno == ECONNRESET)) return fail(Error::gone("receive a message", "the other side"));
  if (got < 0) return fail_errno("receive a message");
  for (cmsghdr* control = CMSG_FIRSTHDR(&header); control != nullptr; control = CMSG_NXTHDR(&header, control)) {
    if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_RIGHTS) continue;
    int descriptor = -1;
    std::memcpy(&descriptor, CMSG_DATA(control), sizeof descriptor);
    packet.descriptor = UniqueFd(descriptor);
  }
  packet.bytes.resize(static_cast<size_t>(got));
  return packet;
}

}  // namespace stasis::kernel
