// Options of the level SOL_SOCKET, which sockets of all families have in common.
#pragma once

#include <sys/time.h>

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "plan/call.h"
#include "sockets.pb.h"

namespace stasis::resource {

struct SocketOptions {
  uint32_t send_buffer = 0, receive_buffer = 0;  ///< as getsockopt(2) tells: twice what was asked for
  std::optional<uint32_t> buffer_lock;           ///< SO_BUF_LOCK: which of them the kernel does not tune by itself
  int64_t send_timeout_us = 0, receive_timeout_us = 0;
  std::optional<uint32_t> linger;                             ///< seconds
  std::optional<std::pair<uint32_t, uint32_t>> time_to_send;  ///< SO_TXTIME: clock and flags
  std::map<int, uint32_t> values;  ///< options with an integer value, where it is not that of a new socket
  std::string device;              ///< SO_BINDTODEVICE
  std::vector<uint64_t> filter;    ///< classic BPF, one instruction each
  friend bool operator==(const SocketOptions&, const SocketOptions&) = default;
};

Result<SocketOptions> capture_socket_options(int fd, const std::string& subject);
void encode_socket_options(const SocketOptions&, sk_opts_entry&);
Result<SocketOptions> decode_socket_options(const sk_opts_entry&, const std::string& where);
/// Sets on a new socket whatever differs. Buffers beyond the limits of net.core need CAP_NET_ADMIN.
void add_socket_options(const SocketOptions&, int fd, plan::Calls&);
plan::Call set_option(int fd, int name, uint32_t value);

}  // namespace stasis::resource
