// A segment of TCP as the peer of a connection might have sent it, for a raw socket: what repair mode cannot do a
// packet does that nobody but the kernel receives.
#pragma once

#include <cstdint>

#include "base/types.h"
#include "kernel/inet.h"

namespace stasis::resource {

/// Its window is 0: nothing is sent in answer. It has no options: without a time stamp none is compared (net/ipv4/
/// tcp_input.c, tcp_validate_incoming).
struct TcpSegment {
  kernel::Endpoint from, to;  ///< of one family, that which is sent
  uint32_t sequence = 0, acknowledges = 0;
  bool fin = false;
  bool reset = false;
  /// Its first byte is, or the first one that is still to come: an urgent pointer of 0 means that, however
  /// net.ipv4.tcp_stdurg is set (net/ipv4/tcp_input.c, tcp_check_urg).
  bool urgent = false;
  Bytes bytes = {};
};

/// With an IP header before it, as IPPROTO_RAW wants it (raw(7)).
Bytes packet_of(const TcpSegment&);

}  // namespace stasis::resource
