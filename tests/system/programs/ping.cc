// Ping sockets (icmp(7), SOCK_DGRAM): bound to an identifier, connected, with options, in both families.
// OWN_NETWORK
// FAIL_RESTORE
#include <netinet/icmp6.h>
#include <netinet/ip_icmp.h>

#include "inet.h"

static int ping_socket(int family) {
  const int fd = socket(family, SOCK_DGRAM, family == AF_INET6 ? int{IPPROTO_ICMPV6} : int{IPPROTO_ICMP});
  CHECK(fd >= 0);
  return fd;
}

/// Is answered by the machine itself. The kernel puts the identifier in.
static void expect_echo(int fd, int family, uint16_t number, const inet::Address* to) {
  struct {
    icmphdr head;
    char text[16];
  } message = {}, answer = {};
  message.head.type = family == AF_INET6 ? uint8_t{ICMP6_ECHO_REQUEST} : uint8_t{ICMP_ECHO};
  message.head.un.echo.sequence = htons(number);
  strcpy(message.text, "is anybody there");
  CHECK(sendto(fd, &message, sizeof message, 0, to != nullptr ? to->pointer() : nullptr,
               to != nullptr ? to->size : 0) == sizeof message);
  CHECK(recv(fd, &answer, sizeof answer, 0) == sizeof answer);
  CHECK_EQUAL(answer.head.type, family == AF_INET6 ? int{ICMP6_ECHO_REPLY} : int{ICMP_ECHOREPLY});
  CHECK_EQUAL(ntohs(answer.head.un.echo.sequence), number);
  CHECK_EQUAL(ntohs(answer.head.un.echo.id), inet::address_of(fd).port());
  CHECK(memcmp(answer.text, message.text, sizeof message.text) == 0);
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  constexpr int families[] = {AF_INET, AF_INET6};
  struct Case {
    int fresh, bound, connected;
    inet::Address bound_address, connected_address;
  } cases[2];
  for (int i = 0; i < 2; ++i) {
    auto& one = cases[i];
    const auto host = inet::loopback(families[i]), with_identifier = inet::loopback(families[i], 4711);
    one.fresh = ping_socket(families[i]);
    one.bound = ping_socket(families[i]);
    CHECK(bind(one.bound, with_identifier.pointer(), with_identifier.size) == 0);
    one.connected = ping_socket(families[i]);
    CHECK(connect(one.connected, host.pointer(), host.size) == 0);
    expect_echo(one.connected, families[i], 1, nullptr), expect_echo(one.bound, families[i], 1, &host);
    one.bound_address = inet::address_of(one.bound), one.connected_address = inet::address_of(one.connected);
    CHECK_EQUAL(one.bound_address.port(), 4711);
  }
  inet::set(cases[0].bound, SOL_IP, IP_TTL, 9), inet::set(cases[0].bound, SOL_IP, IP_RECVERR, 1);
  inet::set(cases[1].bound, SOL_IPV6, IPV6_UNICAST_HOPS, 9), inet::set(cases[1].bound, SOL_IPV6, IPV6_RECVHOPLIMIT, 1);

  probe::ready();
  probe::wait_for_go();

  for (int i = 0; i < 2; ++i) {
    const auto& one = cases[i];
    const auto host = inet::loopback(families[i]);
    inet::expect_same(inet::address_of(one.bound), one.bound_address);
    inet::expect_same(inet::address_of(one.connected), one.connected_address);
    expect_echo(one.fresh, families[i], 2, &host), expect_echo(one.bound, families[i], 3, &host);
    expect_echo(one.connected, families[i], 4, nullptr);
  }
  inet::expect_option(cases[0].bound, SOL_IP, IP_TTL, 9), inet::expect_option(cases[0].bound, SOL_IP, IP_RECVERR, 1);
  inet::expect_option(cases[1].bound, SOL_IPV6, IPV6_UNICAST_HOPS, 9);
  inet::expect_option(cases[1].bound, SOL_IPV6, IPV6_RECVHOPLIMIT, 1);
  return probe::passed();
}
