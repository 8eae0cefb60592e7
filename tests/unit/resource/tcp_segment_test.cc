#include "resource/tcp_segment.h"

#include <gtest/gtest.h>

namespace stasis::resource {
namespace {

constexpr size_t tcp_head = 20;

kernel::Endpoint endpoint(int family, uint8_t last, uint16_t port) {
  kernel::Endpoint made;
  made.family = family, made.port = port;
  if (family == AF_INET) made.address = {127, 0, 0, last};
  if (family == AF_INET6) made.address[15] = last;
  return made;
}

TcpSegment segment(int family) {
  TcpSegment made;
  made.from = endpoint(family, 1, 0x1234), made.to = endpoint(family, 2, 0xfedc);
  made.sequence = 0xffffff01, made.acknowledges = 0x89abcdef;
  return made;
}

/// As a receiver adds it up (RFC 1071): all ones, if nothing has changed on the way.
uint32_t sum(ByteView bytes) {
  uint32_t total = 0;
  for (size_t at = 0; at < bytes.size(); ++at) total += at % 2 == 0 ? bytes[at] << 8 : bytes[at];
  while (total >> 16 != 0) total = (total & 0xffff) + (total >> 16);
  return total;
}

/// With the pseudo header before it (RFC 9293, 3.1; RFC 8200, 8.1).
uint32_t tcp_sum(const TcpSegment& segment, ByteView tcp) {
  Bytes all;
  for (const auto* end : {&segment.from, &segment.to})
    all.insert(all.end(), end->address.begin(), end->address.begin() + static_cast<long>(end->address_size()));
  const auto length = static_cast<uint8_t>(tcp.size());
  for (const uint8_t byte : {uint8_t{0}, uint8_t{IPPROTO_TCP}, uint8_t{0}, length}) all.push_back(byte);
  all.insert(all.end(), tcp.begin(), tcp.end());
  return sum(all);
}

uint32_t word(ByteView bytes, size_t at) {
  return static_cast<uint32_t>(bytes[at] << 24 | bytes[at + 1] << 16 | bytes[at + 2] << 8 | bytes[at + 3]);
}

class TcpSegments : public testing::TestWithParam<int> {
 protected:
  size_t ip_head() const { return GetParam() == AF_INET6 ? 40 : 20; }
  Bytes tcp_of(const TcpSegment& segment) const {
    const Bytes packet = packet_of(segment);
    return Bytes(packet.begin() + static_cast<long>(ip_head()), packet.end());
  }
};

TEST_P(TcpSegments, TheIpHeaderSaysWhoAndHowMuch) {
  const auto made = segment(GetParam());
  const Bytes packet = packet_of(made);
  ASSERT_EQ(packet.size(), ip_head() + tcp_head);
  if (GetParam() == AF_INET) {
    EXPECT_EQ(word(packet, 0), 0x45000000u + packet.size());
    EXPECT_EQ(packet[9], IPPROTO_TCP);
    EXPECT_EQ(sum(ByteView(packet).first(ip_head())), 0xffffu);
    EXPECT_EQ(word(packet, 12), 0x7f000001u);
    EXPECT_EQ(word(packet, 16), 0x7f000002u);
  } else {
    EXPECT_EQ(word(packet, 0), 0x60000000u);
    EXPECT_EQ(word(packet, 4) >> 16, tcp_head);
    EXPECT_EQ(packet[6], IPPROTO_TCP);
    EXPECT_EQ(packet[23], 1);
    EXPECT_EQ(packet[39], 2);
  }
}

TEST_P(TcpSegments, TheTcpHeader) {
  auto made = segment(GetParam());
  const Bytes plain = tcp_of(made);
  EXPECT_EQ(word(plain, 0), 0x1234fedcu);
  EXPECT_EQ(word(plain, 4), made.sequence);
  EXPECT_EQ(word(plain, 8), made.acknowledges);
  EXPECT_EQ(word(plain, 12), 0x50100000u);  // five words, ACK, window 0
  EXPECT_EQ(tcp_sum(made, plain), 0xffffu);
  made.fin = true;
  const Bytes last = tcp_of(made);
  EXPECT_EQ(word(last, 12), 0x50110000u);
  EXPECT_EQ(tcp_sum(made, last), 0xffffu);
}

TEST_P(TcpSegments, UrgentBytes) {
  auto made = segment(GetParam());
  made.urgent = true;
  const Bytes announcement = tcp_of(made);
  ASSERT_EQ(announcement.size(), tcp_head);
  EXPECT_EQ(word(announcement, 12), 0x50300000u);
  EXPECT_EQ(word(announcement, 16) & 0xffff, 0u);  // the pointer
  EXPECT_EQ(tcp_sum(made, announcement), 0xffffu);
  for (const Bytes& bytes : {Bytes{0xff}, Bytes{1, 2}, Bytes{0xff, 0xff, 0xff}}) {
    made.bytes = bytes;
    const Bytes full = tcp_of(made);
    ASSERT_EQ(full.size(), tcp_head + bytes.size());
    EXPECT_EQ(Bytes(full.begin() + tcp_head, full.end()), bytes);
    EXPECT_EQ(tcp_sum(made, full), 0xffffu);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, TcpSegments, testing::Values(AF_INET, AF_INET6));

}  // namespace
}  // namespace stasis::resource
