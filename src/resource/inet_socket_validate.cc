// Whether the internet sockets of a checkpoint can be had on this machine: asked of sockets that are closed again.
#include <fmt/format.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>
#include <set>
#include <tuple>
#include <utility>

#include "resource/inet_socket.h"

namespace stasis::resource {
namespace {

UniqueFd trial(const InetSocket& socket) {
  UniqueFd fd(::socket(socket.what.family, (socket.is_tcp() ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0));
  const int only_ipv6 = socket.only_ipv6 ? 1 : 0, yes = 1;
  if (socket.what.family == AF_INET6) setsockopt(fd.get(), SOL_IPV6, IPV6_V6ONLY, &only_ipv6, sizeof only_ipv6);
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  const auto& device = socket.options.device;
  if (!device.empty())
    setsockopt(fd.get(), SOL_SOCKET, SO_BINDTODEVICE, device.c_str(), static_cast<socklen_t>(device.size() + 1));
  return fd;
}

bool is_option_set(const InetSocket& socket, int level, int name) {
  const auto found = socket.inet_options.values.find({level, name});
  return found != socket.inet_options.values.end() && found->second != 0;
}

void validate_address(const InetSocket& socket, const kernel::Endpoint& address, Diagnostics& diagnostics) {
  const auto& device = socket.options.device;
  if (!device.empty() && if_nametoindex(device.c_str()) == 0) {
    diagnostics.refuse(socket.describe(),
                       fmt::format("it is bound to the device {}, which does not exist here", device),
                       "make that device");
    return;
  }
  if (!address.has_address() || is_bound_anywhere(socket)) return;
  if (try_to_bind(socket, address) != EADDRNOTAVAIL) return;
  diagnostics.refuse(socket.describe(), "no device of this machine has the address that it is bound to",
                     "give the address to a device (ip address add)");
}

void validate_port(const InetSocket& socket, Diagnostics& diagnostics) {
  if (socket.options.values.contains(SO_REUSEPORT) || try_to_bind(socket, socket.local) != EADDRINUSE) return;
  // Connections that end after their program keep its port for a minute, as long as it does not share ports
  // (net/ipv4/inet_connection_sock.c, inet_bind_conflict); no call gives it to a listening socket before.
  if (socket.options.values.contains(SO_REUSEADDR))
    diagnostics.refuse(socket.describe(), "another program listens on its port", "end that program");
  else
    diagnostics.refuse(socket.describe(),
                       "another program listens on its port, or connections of it have not ended yet (TIME_WAIT)",
                       "end that program, or wait a minute; programs that set SO_REUSEADDR need not wait");
}

/// Whoever makes one must be of a group that may (net/ipv4/ping.c, ping_init_sock): at a restore that is stasis.
void validate_ping(const InetSocket& socket, Diagnostics& diagnostics) {
  const UniqueFd fd(::socket(socket.what.family, SOCK_DGRAM | SOCK_CLOEXEC, socket.what.protocol));
  if (fd.valid() || errno != EACCES) return;
  diagnostics.refuse(socket.describe(), "stasis' own group may not open ping sockets here",
                     fmt::format("let group {} do it as well (sysctl net.ipv4.ping_group_range)", getegid()));
}

}  // namespace

bool is_bound_anywhere(const InetSocket& socket) {
  return socket.bound_freely || is_option_set(socket, SOL_IP, IP_FREEBIND) ||
         is_option_set(socket, SOL_IP, IP_TRANSPARENT) || is_option_set(socket, SOL_IPV6, IPV6_FREEBIND) ||
         is_option_set(socket, SOL_IPV6, IPV6_TRANSPARENT);
}

int try_to_bind(const InetSocket& socket, const kernel::Endpoint& to) {
  const auto fd = trial(socket);
  if (fd.get() < 0) return errno;
  const Bytes address = kernel::socket_address(to);
  sockaddr_storage name{};
  std::memcpy(&name, address.data(), address.size());
  return bind(fd.get(), reinterpret_cast<const sockaddr*>(&name), static_cast<socklen_t>(address.size())) == 0 ? 0
                                                                                                               : errno;
}

void validate_inet_sockets(const model::Application& application, Diagnostics& diagnostics) {
  std::set<std::tuple<std::string, std::string, bool>> asked;  // addresses with devices
  bool asked_for_ping = false;
  for (const auto& [id, description] : application.descriptions) {
    const auto* socket = description.state.as<InetSocket>();
    if (socket == nullptr) continue;
    auto address = socket->local;
    address.port = 0;
    if (asked.emplace(kernel::to_text(address), socket->options.device, is_bound_anywhere(*socket)).second)
      validate_address(*socket, address, diagnostics);
    if (socket->is_listening()) validate_port(*socket, diagnostics);
    if (socket->is_ping() && !std::exchange(asked_for_ping, true)) validate_ping(*socket, diagnostics);
    check_memberships(socket->memberships, socket->describe(), diagnostics);
  }
}

}  // namespace stasis::resource
