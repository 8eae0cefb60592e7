// Options of the levels above SOL_SOCKET that internet sockets have: SOL_IP, SOL_IPV6, SOL_TCP, SOL_UDP, SOL_UDPLITE.
#pragma once

#include <map>
#include <string>
#include <utility>

#include "base/result.h"
#include "plan/call.h"
#include "sockets.pb.h"
#include "sockets_more.pb.h"

namespace stasis::resource {

struct InetOptions {
  /// By level and name: those whose value is not that of a new socket, and those that CRIU always saves.
  std::map<std::pair<int, int>, uint32_t> values;
  std::map<std::pair<int, int>, Bytes> long_values;  ///< those of any length
  uint32_t multicast_device = 0;  ///< IP_MULTICAST_IF: the number of the device, beside the address among the values
  std::string congestion;         ///< TCP_CONGESTION, where it is not that of a new socket
  Bytes icmp_filter;              ///< ICMP_FILTER or ICMPV6_FILTER of a raw socket, where it lets not all pass
  friend bool operator==(const InetOptions&, const InetOptions&) = default;
};

/// What kind of socket it is, as socket(2) takes it.
struct InetKind {
  int family = 0, type = 0, protocol = 0;
  friend auto operator<=>(const InetKind&, const InetKind&) = default;
};

/// Reads options of sockets; what a new one of a kind has is found out once.
class InetOptionReader {
 public:
  /// `connected`: it is or was a TCP connection, some of whose options go their own ways.
  Result<InetOptions> read(int fd, const InetKind&, bool connected);

 private:
  Result<const InetOptions*> of_new(const InetKind&);
  std::map<InetKind, InetOptions> of_new_;
};

/// What CRIU does not save goes to the second record.
void encode_inet_options(const InetOptions&, const InetKind&, inet_sk_entry&, socket_more_entry&);
Result<InetOptions> decode_inet_options(const inet_sk_entry&, const socket_more_entry&, const InetKind&,
                                        const std::string& where);
/// Sets them, before the socket is bound.
void add_inet_options(const InetOptions&, const InetKind&, int fd, plan::Calls&);

}  // namespace stasis::resource
