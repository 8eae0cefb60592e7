// Sockets of datagrams: UDP and UDP-Lite, bound (also to an address that no device has), connected, shut down, sharing
// a port, in multicast groups, with options.
// FAIL_RESTORE
#include <net/if.h>
#include <netinet/udp.h>

#include "inet.h"

static int datagram_socket(int family, int protocol = 0) {
  const int fd = socket(family, SOCK_DGRAM, protocol);
  CHECK(fd >= 0);
  return fd;
}
static int bound(int family, int protocol = 0) {
  const int fd = datagram_socket(family, protocol);
  const auto address = inet::loopback(family);
  CHECK(bind(fd, address.pointer(), address.size) == 0);
  return fd;
}
static void connect_to(int fd, int other) {
  const auto to = inet::address_of(other);
  CHECK(connect(fd, to.pointer(), to.size) == 0);
}
static void expect_message(int from, int to, const char* text, const inet::Address* address = nullptr) {
  const auto length = (ssize_t)strlen(text);
  CHECK(sendto(from, text, (size_t)length, 0, address ? address->pointer() : nullptr, address ? address->size : 0) ==
        length);
  char got[64] = {};
  CHECK_EQUAL(recv(to, got, sizeof got, 0), length);
  CHECK(memcmp(got, text, (size_t)length) == 0);
}

/// An address for documentation, which no device has (RFC 5737, RFC 3849).
static inet::Address foreign(int family) {
  auto address = inet::loopback(family, 4711);
  if (family == AF_INET6)
    CHECK(inet_pton(AF_INET6, "2001:db8::4711", &((sockaddr_in6*)&address.name)->sin6_addr) == 1);
  else
    CHECK(inet_pton(AF_INET, "192.0.2.47", &((sockaddr_in*)&address.name)->sin_addr) == 1);
  return address;
}
static void set_freebind(int fd, int family, int value) {
  inet::set(fd, family == AF_INET6 ? SOL_IPV6 : SOL_IP, family == AF_INET6 ? IPV6_FREEBIND : IP_FREEBIND, value);
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  constexpr int families[] = {AF_INET, AF_INET6};
  constexpr int udplite = IPPROTO_UDPLITE;
  struct Case {
    int server, client, lite, fresh, deaf, mute, away, shared[2], member;
    inet::Address server_address, shared_address;
  } cases[2];
  for (int i = 0; i < 2; ++i) {
    auto& one = cases[i];
    const int family = families[i];
    one.server = bound(family), one.client = datagram_socket(family), one.fresh = datagram_socket(family);
    one.server_address = inet::address_of(one.server);
    connect_to(one.client, one.server);
    one.lite = bound(family, udplite);
    inet::set(one.lite, udplite, 10, 12);  // UDPLITE_SEND_CSCOV
    connect_to(one.lite, one.lite);
    one.deaf = bound(family);
    connect_to(one.deaf, one.server);
    CHECK(shutdown(one.deaf, SHUT_RD) == 0);
    one.mute = bound(family);
    connect_to(one.mute, one.server);
    CHECK(shutdown(one.mute, SHUT_WR) == 0);
    one.away = datagram_socket(family);
    set_freebind(one.away, family, 1);
    const auto away = foreign(family);
    CHECK(bind(one.away, away.pointer(), away.size) == 0);
    set_freebind(one.away, family, 0);
    for (int& fd : one.shared) {
      fd = datagram_socket(family);
      inet::set(fd, SOL_SOCKET, SO_REUSEPORT, 1);
      const auto address = &fd == one.shared ? inet::loopback(family) : one.shared_address;
      CHECK(bind(fd, address.pointer(), address.size) == 0);
      one.shared_address = inet::address_of(fd);
    }
    // A group on the loopback device, without packets of one source.
    one.member = datagram_socket(family);
    group_source_req request = {};
    request.gsr_interface = if_nametoindex("lo");
    inet::Address group = inet::loopback(family), source = inet::loopback(family);
    if (family == AF_INET6)
      CHECK(inet_pton(AF_INET6, "ff02::4711", &((sockaddr_in6*)&group.name)->sin6_addr) == 1);
    else
      CHECK(inet_pton(AF_INET, "239.1.2.3", &((sockaddr_in*)&group.name)->sin_addr) == 1);
    memcpy(&request.gsr_group, &group.name, sizeof request.gsr_group);
    memcpy(&request.gsr_source, &source.name, sizeof request.gsr_source);
    const int level = family == AF_INET6 ? IPPROTO_IPV6 : IPPROTO_IP;
    group_req joined = {request.gsr_interface, request.gsr_group};
    CHECK(setsockopt(one.member, level, MCAST_JOIN_GROUP, &joined, sizeof joined) == 0);
    CHECK(setsockopt(one.member, level, MCAST_BLOCK_SOURCE, &request, sizeof request) == 0);
  }
  inet::set(cases[0].server, SOL_SOCKET, SO_BROADCAST, 1), inet::set(cases[0].server, SOL_IP, IP_PKTINFO, 1);
  inet::set(cases[0].server, SOL_IP, IP_RECVERR, 1), inet::set(cases[0].server, SOL_IP, IP_MULTICAST_TTL, 5);
  inet::set(cases[0].server, SOL_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO);
  inet::set(cases[1].server, SOL_IPV6, IPV6_RECVTCLASS, 1),
      inet::set(cases[1].server, SOL_IPV6, IPV6_MULTICAST_HOPS, 3);
  inet::set(cases[0].client, SOL_UDP, UDP_GRO, 1);
  // Packets to a group leave by the device that was chosen by its number.
  const int speaker = datagram_socket(AF_INET), listener = datagram_socket(AF_INET);
  ip_mreqn chosen = {};
  chosen.imr_ifindex = (int)if_nametoindex("lo");
  CHECK(setsockopt(speaker, SOL_IP, IP_MULTICAST_IF, &chosen, sizeof chosen) == 0);
  inet::Address channel = inet::loopback(AF_INET);
  CHECK(inet_pton(AF_INET, "239.4.7.11", &((sockaddr_in*)&channel.name)->sin_addr) == 1);
  CHECK(bind(listener, channel.pointer(), channel.size) == 0);
  channel = inet::address_of(listener);
  memcpy(&chosen.imr_multiaddr, &((sockaddr_in*)&channel.name)->sin_addr, 4);
  CHECK(setsockopt(listener, SOL_IP, IP_ADD_MEMBERSHIP, &chosen, sizeof chosen) == 0);
  expect_message(speaker, listener, "before", &channel);

  probe::ready();
  probe::wait_for_go();

  for (int i = 0; i < 2; ++i) {
    const auto& one = cases[i];
    const int family = families[i], level = family == AF_INET6 ? IPPROTO_IPV6 : IPPROTO_IP;
    inet::expect_same(inet::address_of(one.server), one.server_address);
    inet::expect_same(inet::address_of(one.client, getpeername), one.server_address);
    expect_message(one.client, one.server, "to the server");
    const auto client = inet::address_of(one.client);
    expect_message(one.server, one.client, "to the client", &client);
    expect_message(one.lite, one.lite, "to itself");
    inet::expect_option(one.lite, udplite, 10, 12);
    expect_message(one.fresh, one.server, "from a new one", &one.server_address);
    pollfd end = {one.deaf, POLLRDHUP, 0};
    CHECK(poll(&end, 1, 0) == 1 && (end.revents & POLLRDHUP) != 0);
    expect_message(one.deaf, one.server, "from a deaf one");
    CHECK(send(one.mute, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
    const auto mute = inet::address_of(one.mute);
    expect_message(one.server, one.mute, "to a mute one", &mute);
    inet::expect_same(inet::address_of(one.away), foreign(family));
    inet::expect_option(one.away, family == AF_INET6 ? SOL_IPV6 : SOL_IP,
                        family == AF_INET6 ? IPV6_FREEBIND : IP_FREEBIND, 0);
    inet::expect_same(inet::address_of(one.shared[1]), one.shared_address);
    const int stranger = datagram_socket(family), friendly = datagram_socket(family);
    CHECK(bind(stranger, one.shared_address.pointer(), one.shared_address.size) != 0 && errno == EADDRINUSE);
    inet::set(friendly, SOL_SOCKET, SO_REUSEPORT, 1);
    CHECK(bind(friendly, one.shared_address.pointer(), one.shared_address.size) == 0);
    inet::set(stranger, SOL_SOCKET, SO_REUSEADDR, 1);
    CHECK(bind(stranger, one.server_address.pointer(), one.server_address.size) != 0 && errno == EADDRINUSE);
    struct {
      group_filter head;
      sockaddr_storage more[4];
    } joined = {};
    joined.head.gf_interface = if_nametoindex("lo"), joined.head.gf_numsrc = 4;
    joined.head.gf_group.ss_family = (sa_family_t)family;
    if (family == AF_INET6)
      CHECK(inet_pton(AF_INET6, "ff02::4711", &((sockaddr_in6*)&joined.head.gf_group)->sin6_addr) == 1);
    else
      CHECK(inet_pton(AF_INET, "239.1.2.3", &((sockaddr_in*)&joined.head.gf_group)->sin_addr) == 1);
    socklen_t size = sizeof joined;
    CHECK(getsockopt(one.member, level, MCAST_MSFILTER, &joined, &size) == 0);
    CHECK_EQUAL(joined.head.gf_fmode, MCAST_EXCLUDE);
    CHECK_EQUAL(joined.head.gf_numsrc, 1);
  }
  inet::expect_option(cases[0].server, SOL_SOCKET, SO_BROADCAST, 1);
  inet::expect_option(cases[0].server, SOL_IP, IP_PKTINFO, 1),
      inet::expect_option(cases[0].server, SOL_IP, IP_RECVERR, 1);
  inet::expect_option(cases[0].server, SOL_IP, IP_MULTICAST_TTL, 5);
  inet::expect_option(cases[0].server, SOL_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO);
  inet::expect_option(cases[1].server, SOL_IPV6, IPV6_RECVTCLASS, 1);
  inet::expect_option(cases[1].server, SOL_IPV6, IPV6_MULTICAST_HOPS, 3);
  inet::expect_option(cases[0].client, SOL_UDP, UDP_GRO, 1);
  if (getuid() == 0) {  // which device it is only the kernel's memory tells
    const timeval patience = {5, 0};
    CHECK(setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0);
    expect_message(speaker, listener, "after", &channel);
  }
  return probe::passed();
}
