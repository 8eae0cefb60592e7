// Rings of a packet socket that stand where others stood.
//
// Where the kernel goes on in a ring only the kernel knows, and it comes there by packets alone
// (net/packet/af_packet.c, packet_increment_head). So it gets as many. They go through the loopback device, with an
// EtherType that nobody uses (IEEE 802: for local experiments), past everything that listens to what is sent; who
// listens to all that the loopback device receives sees them.
//
// - Receiving: the socket hears this EtherType on this device alone, and of that only what has its own cookie in it,
//   which no other socket has. It stays so: only bind(2) to something else ends it (packet_bind keeps the protocol).
// - Sending: where frames that cannot be sent are passed over (PACKET_LOSS), frames of a negative length will do, and
//   nothing is sent. Otherwise they have to be sent.
#pragma once

#include "agent/abi.h"
#include "agent/arch/x86_64/syscall.h"

namespace stasis::agent {

class PacketRingLead {
 public:
  PacketRingLead(uint64_t fd, const PacketRings& wanted) : fd_(fd), wanted_(wanted) {}

  /// `content`: a file with what is in the rings in the end.
  int64_t run(uint64_t content) {
    constexpr uint64_t read_write = 3, shared = 1;
    const uint64_t size = size_of(wanted_.receive) + size_of(wanted_.send);
    const int64_t mapped = raw_syscall(call_mmap, 0, size, read_write, shared, fd_, 0);
    if (mapped < 0 && mapped > -4096) return mapped;
    rings_ = static_cast<uint64_t>(mapped);
    int64_t result = wanted_.receive.head == 0 ? 0 : lead_receiving();
    if (result == 0 && wanted_.send.head != 0) result = lead_sending();
    if (result == 0) result = fill(content, size);
    raw_syscall(call_munmap, rings_, size);
    return result;
  }

 private:
  using Ring = PacketRings::Ring;
  static constexpr uint64_t socket_level = 1, packet_level = 263, family = 17;
  static constexpr uint64_t bypass_queues = 20;   // PACKET_QDISC_BYPASS
  static constexpr uint16_t ether_type = 0xb588;  // 0x88b5 in the order of the network
  static constexpr int64_t error_io = -5, error_again = -11, error_no_buffers = -105, error_timed_out = -110;
  static constexpr int patience = 3000;  // milliseconds

  struct Address {  // struct sockaddr_ll
    uint16_t family, protocol;
    int32_t device;
    uint16_t hardware;
    uint8_t packet, length, address[8];
  };
  static constexpr Address loopback = {family, ether_type, 1, 0, 0, 6, {}};  // LOOPBACK_IFINDEX

  /// Where things are in a frame (linux/if_packet.h): status, length, both offsets, and the data if it has no offset.
  struct Layout {
    uint32_t status, length, offsets, data;
  };
  Layout layout() const {
    return wanted_.version == 0   ? Layout{0, 8, 16, 32}
           : wanted_.version == 1 ? Layout{0, 4, 12, 32}
                                  : Layout{20, 16, 24, 48};
  }

  static uint64_t size_of(const Ring& ring) { return uint64_t{ring.block_size} * ring.blocks; }
  uint64_t frame(uint64_t begin, const Ring& ring, uint32_t index) const {
    const uint32_t in_block = ring.block_size / ring.frame_size;
    return begin + uint64_t{index / in_block} * ring.block_size + uint64_t{index % in_block} * ring.frame_size;
  }
  template <typename T>
  static volatile T& at(uint64_t address) {
    return *reinterpret_cast<volatile T*>(address);
  }
  static uint64_t pointer(const void* to) { return reinterpret_cast<uint64_t>(to); }
  static void pause() {
    const int64_t moment[2] = {0, 1'000'000};
    raw_syscall(call_nanosleep, pointer(moment), 0);
  }
  static int64_t set(uint64_t fd, uint64_t level, uint64_t name, const void* value, uint64_t size) {
    return raw_syscall(call_setsockopt, fd, level, name, pointer(value), size);
  }
  int64_t get(uint64_t level, uint64_t name, void* value, uint32_t size) const {
    return raw_syscall(call_getsockopt, fd_, level, name, pointer(value), pointer(&size));
  }

  int64_t lead_receiving() {
    constexpr uint64_t get_cookie = 57, raw_and_close_on_exec = 3 | 02000000;
    uint64_t cookie = 0;
    int64_t result = get(socket_level, get_cookie, &cookie, sizeof cookie);
    if (result == 0) result = hear_only(static_cast<uint32_t>(cookie >> 32), static_cast<uint32_t>(cookie));
    if (result < 0) return result;
    const int64_t sender = raw_syscall(call_socket, family, raw_and_close_on_exec, 0);
    if (sender < 0) return sender;
    result = send_to_itself(static_cast<uint64_t>(sender), cookie);
    raw_syscall(call_close, static_cast<uint64_t>(sender));
    return result;
  }

  /// Of each packet a byte, which has room in the smallest frame.
  int64_t hear_only(uint32_t first, uint32_t second) {
    constexpr uint64_t attach_filter = 26;
    constexpr uint16_t load = 0x20, skip_unless = 0x15, give = 0x06;
    struct Step {  // struct sock_filter
      uint16_t code;
      uint8_t if_true, if_false;
      uint32_t value;
    };
    const uint32_t begin = wanted_.has_header != 0 ? header_size : 0;
    const Step steps[] = {{load, 0, 0, begin},     {skip_unless, 0, 3, first},
                          {load, 0, 0, begin + 4}, {skip_unless, 0, 1, second},
                          {give, 0, 0, 1},         {give, 0, 0, 0}};
    const struct {  // struct sock_fprog
      uint64_t count;
      uint64_t steps;
    } program = {sizeof steps / sizeof *steps, pointer(steps)};
    const int64_t result = set(fd_, socket_level, attach_filter, &program, sizeof program);
    return result < 0 ? result : raw_syscall(call_bind, fd_, pointer(&loopback), sizeof loopback);
  }

  static constexpr uint32_t header_size = 14;  // of Ethernet

  int64_t send_to_itself(uint64_t sender, uint64_t cookie) {
    const uint32_t yes = 1;
    int64_t result = set(sender, packet_level, bypass_queues, &yes, sizeof yes);
    uint16_t packet[11] = {};
    packet[6] = ether_type;
    for (int i = 0; i < 4; ++i) packet[7 + i] = __builtin_bswap16(static_cast<uint16_t>(cookie >> (48 - 16 * i)));
    for (uint32_t i = 0; i < wanted_.receive.head && result == 0; ++i) {
      const int64_t sent =
          raw_syscall(call_sendto, sender, pointer(packet), sizeof packet, 0, pointer(&loopback), sizeof loopback);
      result = sent < 0 ? sent : await(frame(rings_, wanted_.receive, i));
    }
    return result;
  }

  /// It has come when sendto returns, unless the processor has better things to do.
  int64_t await(uint64_t frame) {
    for (int waited = 0; waited < patience; ++waited) {
      if (at<uint32_t>(frame + layout().status) != 0) return 0;
      pause();
    }
    return error_timed_out;
  }

  int64_t lead_sending() {
    const uint64_t begin = rings_ + size_of(wanted_.receive);
    for (uint32_t i = 0; i < wanted_.send.head; ++i) prepare(frame(begin, wanted_.send, i));
    uint32_t bypasses = 0;
    const uint32_t yes = 1;
    int64_t result = get(packet_level, bypass_queues, &bypasses, sizeof bypasses);
    if (result == 0) result = set(fd_, packet_level, bypass_queues, &yes, sizeof yes);
    if (result == 0) result = send(frame(begin, wanted_.send, wanted_.send.head - 1));
    if (result == 0) result = set(fd_, packet_level, bypass_queues, &bypasses, sizeof bypasses);
    return result;
  }

  void prepare(uint64_t frame) {
    constexpr uint32_t send_request = 1, impossible = ~0u;
    const Layout is = layout();
    at<uint32_t>(frame + is.length) = wanted_.passes_over != 0 ? impossible : header_size + wanted_.more_header_size;
    at<uint16_t>(frame + is.offsets) = static_cast<uint16_t>(is.data);
    at<uint16_t>(frame + is.offsets + 2) = static_cast<uint16_t>(is.data);
    at<uint16_t>(frame + is.data + wanted_.more_header_size + 12) = ether_type;
    __atomic_store_n(reinterpret_cast<uint32_t*>(frame + is.status), send_request, __ATOMIC_RELEASE);
  }

  /// One call sends all that are ready, in their order.
  int64_t send(uint64_t last) {
    constexpr uint64_t at_once = 0x40;            // MSG_DONTWAIT
    constexpr uint32_t when_it_was = 0xe0000000;  // TP_STATUS_TS_*
    for (int waited = 0; waited < patience; ++waited) {
      const int64_t sent = raw_syscall(call_sendto, fd_, 0, 0, at_once, pointer(&loopback), sizeof loopback);
      if (sent < 0 && sent != error_again && sent != error_no_buffers) return sent;
      if ((at<uint32_t>(last + layout().status) & ~when_it_was) == 0) return 0;
      pause();
    }
    return error_timed_out;
  }

  int64_t fill(uint64_t content, uint64_t size) {
    for (uint64_t done = 0; done < size;) {
      const int64_t got = raw_syscall(call_pread, content, rings_ + done, size - done, done);
      if (got <= 0) return got < 0 ? got : error_io;
      done += static_cast<uint64_t>(got);
    }
    return 0;
  }

  const uint64_t fd_;
  const PacketRings& wanted_;
  uint64_t rings_ = 0;
};

}  // namespace stasis::agent
