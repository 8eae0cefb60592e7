// Addresses of the internet families, and connections between two of them.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <compare>
#include <cstdint>
#include <string>

#include "base/types.h"

namespace stasis::kernel {

struct Endpoint {
  int family = AF_INET;
  std::array<uint8_t, 16> address{};  ///< of AF_INET the first four bytes
  uint16_t port = 0;                  ///< in the machine's own order
  uint32_t scope = 0;                 ///< sin6_scope_id: the index of a device
  friend auto operator<=>(const Endpoint&, const Endpoint&) = default;

  size_t address_size() const { return family == AF_INET6 ? 16 : 4; }
  bool has_address() const { return address != std::array<uint8_t, 16>{}; }
};

/// Of a struct sockaddr_in or sockaddr_in6; of another family: port and address 0.
Endpoint endpoint_of(const sockaddr_storage&);
/// The structure, as bind(2) and connect(2) want it.
Bytes socket_address(const Endpoint&);
/// The IPv4 address that an IPv4-mapped IPv6 address stands for (RFC 4291, 2.5.5.2): what is sent is IPv4. Others stay.
Endpoint as_sent(const Endpoint&);
/// "10.0.0.1:80", "[::1]:80"
std::string to_text(const Endpoint&);

/// Whether a socket belongs to another network namespace than this process.
bool is_of_other_network(int socket);

struct Connection {
  Endpoint local, remote;
  friend auto operator<=>(const Connection&, const Connection&) = default;
};

}  // namespace stasis::kernel
