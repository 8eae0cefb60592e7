// Listening TCP sockets and such that are not connected: options of all levels, ports that are shared (SO_REUSEADDR,
// SO_REUSEPORT), a listening socket beside connections that it has accepted and which may not share its port.
// DUMP: --tcp-established
// RESTORE: --tcp-established
// FAIL_RESTORE
#include "inet.h"

struct Option {
  int level, name, value;
};

static int stream_socket(int family) {
  const int fd = socket(family, SOCK_STREAM, 0);
  CHECK(fd >= 0);
  return fd;
}
static void bind_to(int fd, const inet::Address& address) { CHECK(bind(fd, address.pointer(), address.size) == 0); }
static bool is_refused(int fd, const inet::Address& address) {
  return bind(fd, address.pointer(), address.size) != 0 && errno == EADDRINUSE;
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);

  // New, bound, and bound to any address of one or both families.
  const int fresh = stream_socket(AF_INET), bound = stream_socket(AF_INET);
  bind_to(bound, inet::loopback(AF_INET));
  const auto bound_address = inet::address_of(bound);
  const int only_six = stream_socket(AF_INET6), both = stream_socket(AF_INET6);
  inet::set(only_six, SOL_IPV6, IPV6_V6ONLY, 1);
  sockaddr_in6 any = {};
  any.sin6_family = AF_INET6;
  CHECK(bind(only_six, (const sockaddr*)&any, sizeof any) == 0 && listen(only_six, 3) == 0);
  CHECK(bind(both, (const sockaddr*)&any, sizeof any) == 0 && listen(both, 4) == 0);
  const uint16_t port_of_both = inet::address_of(both).port();

  // Options: of a listening socket, and of one that is not connected.
  constexpr Option of_listener[] = {
      {SOL_SOCKET, SO_REUSEADDR, 1},  {SOL_SOCKET, SO_KEEPALIVE, 1},
      {SOL_TCP, TCP_DEFER_ACCEPT, 7}, {SOL_TCP, TCP_KEEPIDLE, 77},
      {SOL_TCP, TCP_KEEPINTVL, 11},   {SOL_TCP, TCP_KEEPCNT, 3},
      {SOL_TCP, TCP_NODELAY, 1},      {SOL_TCP, TCP_USER_TIMEOUT, 5000},
      {SOL_TCP, TCP_FASTOPEN, 5},     {SOL_IP, IP_TOS, 0x10},
      {SOL_IP, IP_TTL, 33},           {SOL_IP, IP_FREEBIND, 1},
  };
  const int optioned = stream_socket(AF_INET);
  for (const auto& [level, name, value] : of_listener) inet::set(optioned, level, name, value);
  CHECK(setsockopt(optioned, SOL_TCP, TCP_CONGESTION, "reno", 4) == 0);
  bind_to(optioned, inet::loopback(AF_INET));
  CHECK(listen(optioned, 42) == 0);
  constexpr Option of_six[] = {
      {SOL_IPV6, IPV6_UNICAST_HOPS, 12}, {SOL_IPV6, IPV6_TCLASS, 0x20}, {SOL_IPV6, IPV6_RECVPKTINFO, 1},
      {SOL_IPV6, IPV6_FREEBIND, 1},      {SOL_TCP, TCP_CORK, 1},        {SOL_TCP, TCP_SYNCNT, 4},
      {SOL_TCP, TCP_LINGER2, 9},         {SOL_TCP, TCP_MAXSEG, 999},
  };
  for (const auto& [level, name, value] : of_six) inet::set(only_six, level, name, value);
  const int on_loopback = stream_socket(AF_INET);
  CHECK(setsockopt(on_loopback, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3) == 0);
  bind_to(on_loopback, inet::loopback(AF_INET));
  CHECK(listen(on_loopback, 1) == 0);

  // Two that share a port, and one that must not: its connections have it as well.
  const int shared[2] = {stream_socket(AF_INET), stream_socket(AF_INET)};
  inet::set(shared[0], SOL_SOCKET, SO_REUSEPORT, 1), inet::set(shared[1], SOL_SOCKET, SO_REUSEPORT, 1);
  bind_to(shared[0], inet::loopback(AF_INET));
  const auto shared_address = inet::address_of(shared[0]);
  bind_to(shared[1], shared_address);
  CHECK(listen(shared[0], 2) == 0 && listen(shared[1], 2) == 0);
  // One of them may not share it any more; a third is bound and does not listen.
  const int formerly[3] = {stream_socket(AF_INET), stream_socket(AF_INET), stream_socket(AF_INET)};
  for (const int fd : formerly) inet::set(fd, SOL_SOCKET, SO_REUSEPORT, 1);
  bind_to(formerly[0], inet::loopback(AF_INET));
  const auto former_address = inet::address_of(formerly[0]);
  bind_to(formerly[1], former_address), bind_to(formerly[2], former_address);
  CHECK(listen(formerly[0], 2) == 0 && listen(formerly[1], 2) == 0);
  inet::set(formerly[0], SOL_SOCKET, SO_REUSEPORT, 0), inet::set(formerly[2], SOL_SOCKET, SO_REUSEPORT, 0);
  const int alone = inet::listening(AF_INET);
  const auto first = inet::connected(alone), second = inet::connected(alone);
  // The connections stay, their listening socket goes: nobody may have the port.
  const int closed = inet::listening(AF_INET6);
  const auto orphan = inet::connected(closed);
  const auto closed_address = inet::address_of(closed);
  CHECK(close(closed) == 0);

  probe::ready();
  probe::wait_for_go();

  bind_to(fresh, inet::loopback(AF_INET));
  inet::expect_same(inet::address_of(bound), bound_address);
  CHECK(listen(bound, 1) == 0);
  inet::expect_alive(inet::connected(bound));
  inet::expect_option(only_six, SOL_IPV6, IPV6_V6ONLY, 1), inet::expect_option(both, SOL_IPV6, IPV6_V6ONLY, 0);
  CHECK_EQUAL(inet::address_of(both).port(), port_of_both);
  const int through_four = stream_socket(AF_INET);
  const auto to_both = inet::loopback(AF_INET, port_of_both);
  CHECK(connect(through_four, to_both.pointer(), to_both.size) == 0 && accept(both, nullptr, nullptr) >= 0);

  for (const auto& [level, name, value] : of_listener) inet::expect_option(optioned, level, name, value);
  for (const auto& [level, name, value] : of_six) inet::expect_option(only_six, level, name, value);
  char congestion[16] = {}, device[16] = {};
  socklen_t size = sizeof congestion;
  CHECK(getsockopt(optioned, SOL_TCP, TCP_CONGESTION, congestion, &size) == 0 && strcmp(congestion, "reno") == 0);
  size = sizeof device;
  CHECK(getsockopt(on_loopback, SOL_SOCKET, SO_BINDTODEVICE, device, &size) == 0 && strcmp(device, "lo") == 0);
  tcp_info info = {};
  size = sizeof info;
  CHECK(getsockopt(optioned, SOL_TCP, TCP_INFO, &info, &size) == 0);
  CHECK_EQUAL(info.tcpi_sacked, 42);  // of a listening socket: the backlog

  for (int i = 0; i < 3; ++i) {
    inet::expect_same(inet::address_of(formerly[i]), former_address);
    inet::expect_option(formerly[i], SOL_SOCKET, SO_REUSEPORT, i == 1 ? 1 : 0);
    inet::expect_option(formerly[i], SOL_SOCKET, SO_REUSEADDR, 0);
  }
  CHECK(close(formerly[1]) == 0);
  inet::expect_alive(inet::connected(formerly[0]));
  inet::expect_same(inet::address_of(shared[1]), shared_address);
  const int third = stream_socket(AF_INET), stranger = stream_socket(AF_INET);
  inet::set(third, SOL_SOCKET, SO_REUSEPORT, 1);
  bind_to(third, shared_address);
  CHECK(is_refused(stranger, shared_address));
  inet::set(stranger, SOL_SOCKET, SO_REUSEADDR, 1);
  CHECK(is_refused(stranger, inet::address_of(alone)));
  inet::expect_option(alone, SOL_SOCKET, SO_REUSEADDR, 0);
  inet::expect_option(first.server, SOL_SOCKET, SO_REUSEADDR, 0);
  inet::expect_alive(first), inet::expect_alive(second), inet::expect_alive(orphan);
  inet::expect_alive(inet::connected(alone)), inet::expect_alive(inet::connected(on_loopback));
  const int late = stream_socket(AF_INET6);
  CHECK(is_refused(late, closed_address));
  return probe::passed();
}
