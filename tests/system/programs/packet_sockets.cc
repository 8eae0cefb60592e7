// Packet sockets: of all types, bound to a device or to none, with options of their own, a filter, memberships, a group
// that shares its packets (fanout), and rings of all versions.
// OWN_NETWORK
// FAIL_RESTORE
// ROOT: opens packet sockets
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>

#include "inet.h"

constexpr unsigned block = 4096, blocks = 4, frame = 2048;

static int packet_socket(int type, int protocol = 0) {
  const int fd = socket(AF_PACKET, type, htons((uint16_t)protocol));
  CHECK(fd >= 0);
  return fd;
}
static void bind_to(int fd, int protocol, unsigned device) {
  sockaddr_ll address = {};
  address.sll_family = AF_PACKET, address.sll_protocol = htons((uint16_t)protocol);
  address.sll_ifindex = (int)device;
  CHECK(bind(fd, (const sockaddr*)&address, sizeof address) == 0);
}
static void expect_bound(int fd, int protocol, unsigned device) {
  sockaddr_ll address = {};
  socklen_t size = sizeof address;
  CHECK(getsockname(fd, (sockaddr*)&address, &size) == 0);
  CHECK_EQUAL(ntohs(address.sll_protocol), protocol);
  CHECK_EQUAL(address.sll_ifindex, device);
}
static void join(int fd, int type, unsigned device, const char* address, unsigned short length) {
  packet_mreq request = {};
  request.mr_ifindex = (int)device, request.mr_type = (unsigned short)type, request.mr_alen = length;
  memcpy(request.mr_address, address, length);
  CHECK(setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &request, sizeof request) == 0);
}
static void make_ring(int fd, int option) {
  tpacket_req3 request = {};
  request.tp_block_size = block, request.tp_block_nr = blocks;
  request.tp_frame_size = frame, request.tp_frame_nr = block / frame * blocks;
  request.tp_retire_blk_tov = 10;
  const bool is_third = inet::get(fd, SOL_PACKET, PACKET_VERSION) == TPACKET_V3;
  CHECK(setsockopt(fd, SOL_PACKET, option, &request, is_third ? sizeof request : sizeof(tpacket_req)) == 0);
}

/// A datagram to this port, of which the machine's loopback device has one packet.
static void send_datagram(uint16_t port, const char* text) {
  const int fd = socket(AF_INET, SOCK_DGRAM, 0);
  const auto to = inet::loopback(AF_INET, port);
  CHECK(sendto(fd, text, strlen(text), 0, to.pointer(), to.size) == (ssize_t)strlen(text));
  close(fd);
}
/// The next packet ends in this text; what comes before it is `head` bytes long.
static void expect_packet(int fd, const char* text, size_t head) {
  char packet[2048];
  const ssize_t size = recv(fd, packet, sizeof packet, 0);
  CHECK_EQUAL(size, head + strlen(text));
  CHECK(memcmp(packet + head, text, strlen(text)) == 0);
}
/// Both rings of a socket are mapped in one go, the one for receiving first.
static void expect_in_ring(int fd, unsigned rings, const char* text) {
  auto* ring = (char*)mmap(nullptr, rings * block * blocks, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(ring != MAP_FAILED);
  pollfd readable = {fd, POLLIN, 0};
  CHECK(poll(&readable, 1, 10000) == 1);
  CHECK(memmem(ring, block * blocks, text, strlen(text)) != nullptr);
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  const unsigned lo = if_nametoindex("lo");
  constexpr size_t ip_head = 20 + 8;
  const int silent = packet_socket(SOCK_RAW), everywhere = packet_socket(SOCK_DGRAM, ETH_P_IPV6);
  const int bound = packet_socket(SOCK_DGRAM), old = packet_socket(SOCK_PACKET, ETH_P_ARP);
  sockaddr old_name = {};
  old_name.sa_family = AF_PACKET, strcpy(old_name.sa_data, "lo");
  CHECK(bind(old, &old_name, sizeof old_name) == 0);

  // Nothing but IPv4 to port 7; sent by others, as everything is twice on the loopback device.
  inet::set(bound, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
  sock_filter to_port[] = {{BPF_LD | BPF_H | BPF_ABS, 0, 0, 22},
                           {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 7},
                           {BPF_RET | BPF_K, 0, 0, 0xffff},
                           {BPF_RET | BPF_K, 0, 0, 0}};
  const sock_fprog program = {4, to_port};
  CHECK(setsockopt(bound, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
  bind_to(bound, ETH_P_IP, lo);

  struct Option {
    int name, value;
  };
  constexpr Option options[] = {
      {PACKET_VERSION, TPACKET_V2}, {PACKET_RESERVE, 16}, {PACKET_TIMESTAMP, 16}, {PACKET_AUXDATA, 1},
      {PACKET_ORIGDEV, 1},          {PACKET_VNET_HDR, 1}, {PACKET_LOSS, 1},       {PACKET_TX_HAS_OFF, 1},
      {PACKET_QDISC_BYPASS, 1}};
  for (const auto& [name, value] : options) inet::set(silent, SOL_PACKET, name, value);
  inet::set(silent, SOL_PACKET, PACKET_COPY_THRESH, 128);
  join(silent, PACKET_MR_PROMISC, lo, "", 0), join(silent, PACKET_MR_ALLMULTI, lo, "", 0);
  for (int twice = 0; twice < 2; ++twice) join(silent, PACKET_MR_MULTICAST, lo, "\1\0\136\1\2\3", 6);

  int sharing[2];
  for (int& fd : sharing) {
    fd = packet_socket(SOCK_DGRAM);
    bind_to(fd, ETH_P_IPV6, lo);
    inet::set(fd, SOL_PACKET, PACKET_FANOUT, 4711 | (PACKET_FANOUT_LB | PACKET_FANOUT_FLAG_DEFRAG) << 16);
  }
  const int shared = inet::get(sharing[0], SOL_PACKET, PACKET_FANOUT);

  int rings[3];
  for (const int version : {TPACKET_V1, TPACKET_V2, TPACKET_V3}) {
    const int fd = rings[version] = packet_socket(SOCK_RAW);
    inet::set(fd, SOL_PACKET, PACKET_VERSION, version);
    make_ring(fd, PACKET_RX_RING);
    if (version != TPACKET_V3) make_ring(fd, PACKET_TX_RING);
    bind_to(fd, ETH_P_IP, lo);
  }

  probe::ready();
  probe::wait_for_go();

  expect_bound(silent, 0, 0), expect_bound(everywhere, ETH_P_IPV6, 0), expect_bound(bound, ETH_P_IP, lo);
  send_datagram(9, "for the rings");
  for (const int fd : rings) expect_in_ring(fd, fd == rings[TPACKET_V3] ? 1 : 2, "for the rings");
  send_datagram(8, "to another port"), send_datagram(7, "to this port");
  expect_packet(bound, "to this port", ip_head);
  inet::expect_option(bound, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
  for (const auto& [name, value] : options) inet::expect_option(silent, SOL_PACKET, name, value);
  inet::expect_option(old, SOL_SOCKET, SO_TYPE, SOCK_PACKET);
  sockaddr old_found = {};
  socklen_t size = sizeof old_found;
  CHECK(getsockname(old, &old_found, &size) == 0 && strcmp(old_found.sa_data, "lo") == 0);
  for (const int fd : sharing) inet::expect_option(fd, SOL_PACKET, PACKET_FANOUT, shared);
  return probe::passed();
}
