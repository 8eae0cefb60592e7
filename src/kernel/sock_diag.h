// Sockets as the kernel lists them: NETLINK_SOCK_DIAG (sock_diag(7)), in the network namespace of the caller.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "base/result.h"
#include "base/types.h"

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

}  // namespace stasis::kernel
