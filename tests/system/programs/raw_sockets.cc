// Raw sockets: of one protocol and of the program's own packets, bound and connected, with a filter of ICMP messages.
// FAIL_RESTORE
// ROOT: opens raw sockets
#include <linux/icmp.h>
#include <netinet/ip.h>

#include "inet.h"

static int raw_socket(int family, int protocol) {
  const int fd = socket(family, SOCK_RAW, protocol);
  CHECK(fd >= 0);
  return fd;
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  constexpr int experimental = 253;
  const int filtered = raw_socket(AF_INET, IPPROTO_ICMP);
  const uint32_t filter = ~(1u << ICMP_ECHO);
  CHECK(setsockopt(filtered, SOL_RAW, ICMP_FILTER, &filter, sizeof filter) == 0);
  inet::set(filtered, SOL_IP, IP_HDRINCL, 1);
  const int six = raw_socket(AF_INET6, experimental), sender = raw_socket(AF_INET, experimental);
  const int bound = raw_socket(AF_INET, experimental);
  const auto host = inet::loopback(AF_INET), host_six = inet::loopback(AF_INET6);
  CHECK(bind(bound, host.pointer(), host.size) == 0);
  CHECK(connect(sender, host.pointer(), host.size) == 0 && shutdown(sender, SHUT_RD) == 0);
  CHECK(connect(six, host_six.pointer(), host_six.size) == 0);
  inet::set(six, SOL_IPV6, IPV6_CHECKSUM, 2);
  constexpr int of_no_packet = 256, largest = 262;  // what the kernel allows (IPPROTO_MAX)
  const int idle[] = {raw_socket(AF_INET, of_no_packet), raw_socket(AF_INET6, largest),
                      raw_socket(AF_INET, IPPROTO_RAW)};

  probe::ready();
  probe::wait_for_go();

  inet::expect_option(filtered, SOL_RAW, ICMP_FILTER, (int)filter),
      inet::expect_option(filtered, SOL_IP, IP_HDRINCL, 1);
  inet::expect_option(filtered, SOL_SOCKET, SO_PROTOCOL, IPPROTO_ICMP);
  inet::expect_option(six, SOL_SOCKET, SO_PROTOCOL, experimental), inet::expect_option(six, SOL_IPV6, IPV6_CHECKSUM, 2);
  inet::expect_option(idle[0], SOL_SOCKET, SO_PROTOCOL, of_no_packet);
  inet::expect_option(idle[1], SOL_SOCKET, SO_PROTOCOL, largest);
  inet::expect_option(idle[2], SOL_SOCKET, SO_PROTOCOL, IPPROTO_RAW);
  CHECK(send(sender, "a packet", 8, 0) == 8);
  char packet[64];
  CHECK_EQUAL(recv(bound, packet, sizeof packet, 0), sizeof(iphdr) + 8);
  CHECK(memcmp(packet + sizeof(iphdr), "a packet", 8) == 0);
  CHECK(send(six, "another one", 12, 0) == 12);  // with its checksum in the bytes 2 and 3
  CHECK_EQUAL(recv(six, packet, sizeof packet, 0), 12);
  CHECK(memcmp(packet + 4, "her one", 8) == 0);
  return probe::passed();
}
