// Sockets as the kernel lists them: NETLINK_SOCK_DIAG (sock_diag(7)), in the network namespace of the caller.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "kernel/inet.h"

namespace stasis::kernel {

/// A unix socket (net/unix/diag.c).
struct UnixSocketInfo {
  uint32_t inode = 0;
  uint8_t type = 0;   ///< SOCK_*
  uint8_t state = 0;  ///< TCP_ESTABLISHED, TCP_CLOSE, TCP_LISTEN
  Bytes name;  ///< sun_path up to the length of the address: a path with its NUL, an abstract name with its first
  uint32_t file_inode = 0, file_device = 0;  ///< of the file that it is bound to; the device in the kernel's own form
  /// Nothing: it has none. 0: its peer has no inode: it is closed, or nobody has accepted it yet.
  std::optional<uint32_t> peer;
  std::vector<uint32_t> pending;  ///< of a listening one: those who wait to be accepted; 0: closed in the meantime
  uint32_t receive_queue = 0;     ///< listening: how many wait; otherwise bytes (of datagrams: of the first)
  uint32_t backlog = 0;           ///< of a listening one
  uint8_t shutdown = 0;           ///< 1: receives nothing more, 2: sends nothing more
};

/// All unix sockets of the network namespace that have not ended.
Result<std::vector<UnixSocketInfo>> list_unix_sockets();

/// How sockets are shut down (1: receives nothing more, 2: sends nothing more, 3), by inode.
using Shutdowns = std::map<uint32_t, uint8_t>;
/// Of those that are bound and shut down. IPPROTO_RAW stands for raw sockets of all protocols. Empty, if the kernel
/// does not list such sockets.
Result<Shutdowns> list_shutdowns(int family, int protocol);

/// Where TCP sockets of the family connect to that have no answer yet (SYN_SENT), by inode: getpeername(2) does not
/// say.
Result<std::map<uint32_t, Endpoint>> list_connecting(int family);

/// The same of sockets that are connected to an address without a port, which getpeername(2) does not tell either
/// (net/ipv4/af_inet.c, inet_getname). `table`: "raw", "icmp6" …, a file of /proc/net.
Result<std::map<uint32_t, Endpoint>> list_peers(const std::string& table, int family);

/// A packet socket (packet(7); net/packet/diag.c): what getsockopt(2) does not tell of it.
struct PacketSocketInfo {
  uint32_t inode = 0;
  uint16_t protocol = 0;  ///< ETH_P_*; 0: it receives nothing
  int32_t device = 0;     ///< index; 0: all of them; -1: the one that it was bound to is gone
  uint32_t version = 0, reserve = 0, copy_threshold = 0, timestamp = 0;
  bool auxiliary_data = false, original_device = false, network_header = false, loss = false;
  struct Membership {
    int32_t device = 0;
    uint32_t count = 1;  ///< how often it was asked for
    uint16_t type = 0;   ///< PACKET_MR_*
    Bytes address;
    friend bool operator==(const Membership&, const Membership&) = default;
  };
  std::vector<Membership> memberships;
  struct Ring {
    uint32_t block_size = 0, blocks = 0, frame_size = 0, frames = 0;
    uint32_t retire_ms = 0, private_size = 0, features = 0;  ///< of version 3
    friend bool operator==(const Ring&, const Ring&) = default;
  };
  std::optional<Ring> receive_ring, send_ring;
};
/// All packet sockets of the network namespace.
Result<std::vector<PacketSocketInfo>> list_packet_sockets();

}  // namespace stasis::kernel
