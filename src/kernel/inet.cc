#include "kernel/inet.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "base/unique_fd.h"

namespace stasis::kernel {

Endpoint endpoint_of(const sockaddr_storage& storage) {
  Endpoint endpoint;
  if (storage.ss_family == AF_INET6) {
    sockaddr_in6 name{};
    std::memcpy(&name, &storage, sizeof name);
    endpoint.family = AF_INET6, endpoint.port = ntohs(name.sin6_port), endpoint.scope = name.sin6_scope_id;
    std::memcpy(endpoint.address.data(), &name.sin6_addr, sizeof name.sin6_addr);
  } else if (storage.ss_family == AF_INET) {
    sockaddr_in name{};
    std::memcpy(&name, &storage, sizeof name);
    endpoint.port = ntohs(name.sin_port);
    std::memcpy(endpoint.address.data(), &name.sin_addr, sizeof name.sin_addr);
  }
  return endpoint;
}

Bytes socket_address(const Endpoint& endpoint) {
  if (endpoint.family == AF_INET6) {
    sockaddr_in6 name{};
    name.sin6_family = AF_INET6, name.sin6_port = htons(endpoint.port), name.sin6_scope_id = endpoint.scope;
    std::memcpy(&name.sin6_addr, endpoint.address.data(), sizeof name.sin6_addr);
    return bytes_of(name);
  }
  sockaddr_in name{};
  name.sin_family = AF_INET, name.sin_port = htons(endpoint.port);
  std::memcpy(&name.sin_addr, endpoint.address.data(), sizeof name.sin_addr);
  return bytes_of(name);
}

Endpoint as_sent(const Endpoint& endpoint) {
  constexpr std::array<uint8_t, 12> mapped{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  if (endpoint.family != AF_INET6 || !std::ranges::equal(mapped, std::span(endpoint.address).first(mapped.size())))
    return endpoint;
  Endpoint sent;
  sent.port = endpoint.port;
  std::ranges::copy(std::span(endpoint.address).subspan(mapped.size()), sent.address.begin());
  return sent;
}

std::string to_text(const Endpoint& endpoint) {
  char text[INET6_ADDRSTRLEN] = {};
  inet_ntop(endpoint.family, endpoint.address.data(), text, sizeof text);
  if (endpoint.family == AF_INET6) return fmt::format("[{}]:{}", text, endpoint.port);
  return fmt::format("{}:{}", text, endpoint.port);
}

bool is_of_other_network(int socket) {
  constexpr unsigned long network_namespace_of = 0x894c;  // SIOCGSKNS, linux/sockios.h
  const UniqueFd space(ioctl(socket, network_namespace_of));
  struct stat own{}, of_socket{};
  return space.valid() && fstat(space.get(), &of_socket) == 0 && stat("/proc/self/ns/net", &own) == 0 &&
         own.st_ino != of_socket.st_ino;
}

}  // namespace stasis::kernel
