#include "resource/tcp_segment.h"

#include <netinet/ip.h>
#include <netinet/ip6.h>

#include <cstring>

namespace stasis::resource {
namespace {

/// RFC 1071. Each part but the last has an even length.
uint32_t sum_of(ByteView bytes, uint32_t sum = 0) {
  for (size_t at = 0; at < bytes.size(); ++at) sum += at % 2 == 0 ? bytes[at] << 8 : bytes[at];
  return sum;
}
uint16_t checksum(uint32_t sum) {
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return htons(static_cast<uint16_t>(~sum));
}

Bytes tcp_bytes(const TcpSegment& segment) {
  // netinet/tcp.h and linux/tcp.h, which others need beside us, exclude each other.
  struct {
    uint16_t source, destination;
    uint32_t sequence, acknowledges;
    uint8_t offset, flags;
    uint16_t window, sum, urgent;
  } head{};
  constexpr uint8_t fin = 1, reset = 4, ack = 16, urgent = 32;
  head.source = htons(segment.from.port), head.destination = htons(segment.to.port);
  head.sequence = htonl(segment.sequence), head.acknowledges = htonl(segment.acknowledges);
  head.offset = sizeof head / 4 << 4;
  head.flags = ack | (segment.fin ? fin : 0) | (segment.reset ? reset : 0) | (segment.urgent ? urgent : 0);
  const size_t size = segment.from.address_size();
  const auto length = static_cast<uint32_t>(sizeof head + segment.bytes.size());
  uint32_t sum = sum_of(ByteView(segment.from.address).first(size), IPPROTO_TCP + length);
  sum = sum_of(ByteView(segment.to.address).first(size), sum);
  sum = sum_of(segment.bytes, sum);
  head.sum = checksum(sum_of(bytes_of(head), sum));
  Bytes bytes = bytes_of(head);
  bytes.insert(bytes.end(), segment.bytes.begin(), segment.bytes.end());
  return bytes;
}

}  // namespace

Bytes packet_of(const TcpSegment& segment) {
  const Bytes payload = tcp_bytes(segment);
  constexpr uint8_t hops = 64;
  Bytes bytes;
  if (segment.from.family == AF_INET6) {
    ip6_hdr head{};
    head.ip6_flow = htonl(6u << 28), head.ip6_plen = htons(static_cast<uint16_t>(payload.size()));
    head.ip6_nxt = IPPROTO_TCP, head.ip6_hlim = hops;
    std::memcpy(&head.ip6_src, segment.from.address.data(), 16);
    std::memcpy(&head.ip6_dst, segment.to.address.data(), 16);
    bytes = bytes_of(head);
  } else {
    iphdr head{};
    head.version = 4, head.ihl = sizeof head / 4, head.ttl = hops, head.protocol = IPPROTO_TCP;
    head.tot_len = htons(static_cast<uint16_t>(sizeof head + payload.size()));
    std::memcpy(&head.saddr, segment.from.address.data(), 4);
    std::memcpy(&head.daddr, segment.to.address.data(), 4);
    head.check = checksum(sum_of(bytes_of(head)));
    bytes = bytes_of(head);
  }
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  return bytes;
}

}  // namespace stasis::resource
