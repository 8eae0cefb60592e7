// Rings of packet sockets that are mapped: frames that nobody has read yet, the kernel in the middle of a ring, once
// around it, and where it is full; rings for sending, that pass over what cannot be sent or do not; both in one
// mapping; mapped twice, privately, and by a child.
//
// OWN_NETWORK
// FAIL_RESTORE: 7  (a ring takes the kernel 10 ms to let go of)
// ROOT: opens packet sockets, and where the kernel goes on in a ring only its memory tells
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>

#include <initializer_list>

#include "inet.h"

namespace {

constexpr unsigned block = 4096, blocks = 4, frame = 1024, frames = block / frame * blocks;
constexpr size_t ring_size = block * blocks, header = 14;

/// A packet has this much: who sends and who gets it, a type that is one ring's own, and a number.
struct Packet {
  char addresses[12];
  uint16_t type;
  uint32_t number;
} __attribute__((packed));

sockaddr_ll on_loopback(uint16_t type) {
  sockaddr_ll address = {};
  address.sll_family = AF_PACKET, address.sll_protocol = htons(type), address.sll_ifindex = (int)if_nametoindex("lo");
  address.sll_halen = 6;
  return address;
}

struct Ring {
  uint16_t type = 0;
  int kind = SOCK_RAW, version = TPACKET_V2, fd = -1;
  bool receives = false, sends = false;
  char* memory = nullptr;
  unsigned next = 0;       ///< to be read
  unsigned next_sent = 0;  ///< to be sent

  size_t size() const { return (receives ? ring_size : 0) + (sends ? ring_size : 0); }
  char* received(unsigned index) const { return memory + index * frame; }
  char* sent(unsigned index) const { return memory + (receives ? ring_size : 0) + index * frame; }
  uint32_t& status(char* at) const { return version == TPACKET_V3 ? ((tpacket3_hdr*)at)->tp_status : *(uint32_t*)at; }
  uint32_t status_now(char* at) const { return __atomic_load_n(&status(at), __ATOMIC_ACQUIRE); }
};

void make_ring(int fd, int option) {
  tpacket_req3 request = {};
  request.tp_block_size = block, request.tp_block_nr = blocks, request.tp_frame_size = frame;
  request.tp_frame_nr = frames;
  const bool is_third = inet::get(fd, SOL_PACKET, PACKET_VERSION) == TPACKET_V3;
  CHECK(setsockopt(fd, SOL_PACKET, option, &request, is_third ? sizeof request : sizeof(tpacket_req)) == 0);
}

struct Wanted {
  bool receives = true, sends = false;
  int version = TPACKET_V2, kind = SOCK_RAW;
  std::initializer_list<int> options = {};  ///< that are set to 1
  int mapped = MAP_SHARED;
};

Ring make(uint16_t type, const Wanted& wanted) {
  Ring ring;
  ring.type = type, ring.kind = wanted.kind, ring.version = wanted.version;
  ring.receives = wanted.receives, ring.sends = wanted.sends;
  ring.fd = socket(AF_PACKET, ring.kind, 0);
  CHECK(ring.fd >= 0);
  inet::set(ring.fd, SOL_PACKET, PACKET_VERSION, ring.version);
  inet::set(ring.fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
  for (const int option : wanted.options) inet::set(ring.fd, SOL_PACKET, option, 1);
  if (ring.receives) make_ring(ring.fd, PACKET_RX_RING);
  if (ring.sends) make_ring(ring.fd, PACKET_TX_RING);
  ring.memory = (char*)mmap(nullptr, ring.size(), PROT_READ | PROT_WRITE, wanted.mapped, ring.fd, 0);
  CHECK(ring.memory != MAP_FAILED);
  const auto address = on_loopback(type);
  CHECK(bind(ring.fd, (const sockaddr*)&address, sizeof address) == 0);
  return ring;
}

void send_packet(uint16_t type, uint32_t number) {
  const int fd = socket(AF_PACKET, SOCK_RAW, 0);
  Packet packet = {{}, htons(type), number};
  const auto to = on_loopback(type);
  CHECK(sendto(fd, &packet, sizeof packet, 0, (const sockaddr*)&to, sizeof to) == (ssize_t)sizeof packet);
  close(fd);
}
void send_packets(uint16_t type, uint32_t first, uint32_t count) {
  for (uint32_t number = first; number < first + count; ++number) send_packet(type, number);
}

/// In the frame that comes next, and in no other.
void expect_packet(Ring& ring, uint32_t number) {
  char* const at = ring.received(ring.next);
  for (int waited = 0; (ring.status_now(at) & TP_STATUS_USER) == 0 && waited < 10000; ++waited) usleep(1000);
  CHECK((ring.status_now(at) & TP_STATUS_USER) != 0);
  const unsigned begin = ring.version == TPACKET_V1 ? ((tpacket_hdr*)at)->tp_mac : ((tpacket2_hdr*)at)->tp_mac;
  uint32_t found = 0;
  memcpy(&found, at + begin + (ring.kind == SOCK_RAW ? header : 0), sizeof found);
  CHECK_EQUAL(found, number);
  __atomic_store_n(&ring.status(at), TP_STATUS_KERNEL, __ATOMIC_RELEASE);
  ring.next = (ring.next + 1) % frames;
}
void expect_packets(Ring& ring, uint32_t first, uint32_t count) {
  for (uint32_t number = first; number < first + count; ++number) expect_packet(ring, number);
}
void expect_none(const Ring& ring) { CHECK_EQUAL(ring.status_now(ring.received(ring.next)), TP_STATUS_KERNEL); }

/// `read` have been, `left` wait; then others come.
void begin(Ring& ring, uint32_t read, uint32_t left) {
  for (uint32_t number = 0; number < read; ++number) {
    send_packet(ring.type, number);
    expect_packet(ring, number);
  }
  send_packets(ring.type, read, left);
}
void go_on(Ring& ring, uint32_t read, uint32_t left) {
  expect_packets(ring, read, left);
  expect_none(ring);
  for (uint32_t number = 100; number < 100 + 2 * frames; ++number) {
    send_packet(ring.type, number);
    expect_packet(ring, number);
  }
}

void prepare(Ring& ring, uint32_t number) {
  char* const at = ring.sent(ring.next_sent);
  const bool is_third = ring.version == TPACKET_V3;
  const uint32_t length = ring.kind == SOCK_RAW ? sizeof(Packet) : sizeof number;
  const unsigned begin = TPACKET_ALIGN(is_third ? sizeof(tpacket3_hdr) : sizeof(tpacket2_hdr));
  const Packet packet = {{}, htons(ring.type), number};
  memcpy(at + begin, ring.kind == SOCK_RAW ? (const char*)&packet : (const char*)&packet.number, length);
  if (is_third)
    ((tpacket3_hdr*)at)->tp_len = length;
  else if (ring.version == TPACKET_V2)
    ((tpacket2_hdr*)at)->tp_len = length;
  else
    ((tpacket_hdr*)at)->tp_len = length;
  __atomic_store_n(&ring.status(at), TP_STATUS_SEND_REQUEST, __ATOMIC_RELEASE);
  ring.next_sent = (ring.next_sent + 1) % frames;
}
void send_prepared(const Ring& ring) {
  const auto to = on_loopback(ring.type);
  CHECK(sendto(ring.fd, nullptr, 0, 0, (const sockaddr*)&to, sizeof to) > 0);
}
void send_through(Ring& ring, Ring& listener, uint32_t first, uint32_t count) {
  for (uint32_t number = first; number < first + count; ++number) {
    prepare(ring, number);
    send_prepared(ring);
    expect_packet(listener, number);
  }
}

void hear_only_even(int fd) {
  sock_filter only_even[] = {{BPF_LD | BPF_B | BPF_ABS, 0, 0, header},
                             {BPF_ALU | BPF_AND | BPF_K, 0, 0, 1},
                             {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0},
                             {BPF_RET | BPF_K, 0, 0, 0xffff},
                             {BPF_RET | BPF_K, 0, 0, 0}};
  const sock_fprog program = {5, only_even};
  CHECK(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
  inet::set(fd, SOL_SOCKET, SO_LOCK_FILTER, 1);
}

/// Each pair of a ring that sends and one that hears it.
struct Pair {
  Ring sender, listener;
  uint32_t sent = 0;
};
Pair make_pair(uint16_t type, const Wanted& wanted, uint32_t sent) {
  Pair pair = {make(type, wanted), make(type, {}), sent};
  send_through(pair.sender, pair.listener, 0, sent);
  prepare(pair.sender, 50);  // but it is not sent yet
  return pair;
}
void go_on(Pair& pair) {
  expect_none(pair.listener);
  send_prepared(pair.sender);
  expect_packet(pair.listener, 50);
  send_through(pair.sender, pair.listener, 60, 2 * frames);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  uint16_t type = 0x9100;  // of nobody's
  Ring first = make(type++, {.version = TPACKET_V1}), second = make(type++, {.kind = SOCK_DGRAM});
  begin(first, 3, 2), begin(second, frames + 5, 4);
  Ring full = make(type++, {});
  begin(full, 7, frames);
  Ring fresh = make(type++, {});
  Ring filtered = make(type++, {});
  send_packet(filtered.type, 1), expect_packet(filtered, 1);
  hear_only_even(filtered.fd);
  auto* const twice = (char*)mmap(nullptr, ring_size, PROT_READ, MAP_SHARED, second.fd, 0);
  CHECK(twice != MAP_FAILED);

  Pair pairs[] = {
      make_pair(type++, {.receives = false, .sends = true}, 5),
      make_pair(type++, {.receives = false, .sends = true, .version = TPACKET_V1, .options = {PACKET_LOSS}}, 6),
      make_pair(type++, {.receives = false, .sends = true, .version = TPACKET_V3}, frames + 3),
      make_pair(type++, {.receives = false, .sends = true, .kind = SOCK_DGRAM}, 1)};
  Ring both = make(type++, {.sends = true});
  send_through(both, both, 0, frames + 9);

  Ring own = make(type++, {.mapped = MAP_PRIVATE});
  send_packets(own.type, 0, 2);
  memcpy(own.received(frames - 1) + 100, "of its own", 10);  // the page is the program's from now on
  Ring common = make(type++, {});
  begin(common, 2, 2);
  auto* const turn = probe::shared_memory<int>();
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    probe::await(turn, 1);
    expect_packets(common, 2, 1);
    _exit(0);
  }
  // Hears everything, also what leads the kernel through the rings of others.
  Ring curious = make(ETH_P_ALL, {});
  send_packets(type, 0, 3);

  probe::ready();
  probe::wait_for_go();

  expect_packets(curious, 0, 3);
  expect_none(curious);
  CHECK(close(curious.fd) == 0);
  CHECK(munmap(curious.memory, curious.size()) == 0);
  const unsigned shared_frame = second.next;
  CHECK(memcmp(twice + shared_frame * frame, second.received(shared_frame), frame) == 0);
  go_on(first, 3, 2), go_on(second, frames + 5, 4), go_on(fresh, 0, 0);
  expect_packets(full, 7, 1);
  send_packet(full.type, 7 + frames);
  expect_packets(full, 8, frames);
  expect_none(full);
  send_packets(filtered.type, 2, 3);
  expect_packet(filtered, 2), expect_packet(filtered, 4), expect_none(filtered);
  inet::expect_option(filtered.fd, SOL_SOCKET, SO_LOCK_FILTER, 1);
  for (Pair& pair : pairs) go_on(pair);
  send_through(both, both, 30, 2 * frames);
  expect_packets(own, 0, 1);  // makes this page its own, too
  CHECK(memcmp(own.received(frames - 1) + 100, "of its own", 10) == 0);
  __atomic_store_n(turn, 1, __ATOMIC_RELEASE);
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK_EQUAL(status, 0);
  common.next = (common.next + 1) % frames;
  go_on(common, 3, 1);
  tpacket_stats counted = {};
  socklen_t size = sizeof counted;
  CHECK(getsockopt(fresh.fd, SOL_PACKET, PACKET_STATISTICS, &counted, &size) == 0);
  CHECK_EQUAL(counted.tp_packets, 2 * frames);
  return probe::passed();
}
