// TCP connections with everything that can wait in them: received, sent and not acknowledged, not sent at all (the
// peer's buffers are full), held back by TCP_CORK. And what the ends have agreed upon: window scale, SACK, time stamps,
// segment size. Nothing is lost, doubled or out of order.
// DUMP: --tcp-established
// RESTORE: --tcp-established
// FAIL_RESTORE
#include "inet.h"

struct Stream {
  inet::Pair pair;
  size_t to_server = 0, to_client = 0;  // bytes under way
};

static tcp_info info_of(int fd) {
  tcp_info info = {};
  socklen_t size = sizeof info;
  CHECK(getsockopt(fd, SOL_TCP, TCP_INFO, &info, &size) == 0);
  return info;
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  constexpr int families[] = {AF_INET, AF_INET6};
  Stream full[2], both_ways[2], corked[2], small[2];
  tcp_info before[2];
  for (int i = 0; i < 2; ++i) {
    const int listener = inet::listening(families[i]);
    full[i].pair = inet::connected(listener);
    full[i].to_server = inet::fill_pattern(full[i].pair.client, 0, 1);
    both_ways[i].pair = inet::connected(listener);
    both_ways[i].to_server = inet::fill_pattern(both_ways[i].pair.client, 0, 2);
    both_ways[i].to_client = inet::fill_pattern(both_ways[i].pair.server, 0, 3);
    corked[i].pair = inet::connected(listener);
    inet::set(corked[i].pair.client, SOL_TCP, TCP_CORK, 1);
    inet::write_pattern(corked[i].pair.client, 0, 100, 4);
    corked[i].to_server = 100;
    // Buffers of a size of the program's own, and a peer that has read a part.
    small[i].pair = inet::connected(listener);
    inet::set(small[i].pair.server, SOL_SOCKET, SO_RCVBUF, 8192),
        inet::set(small[i].pair.client, SOL_SOCKET, SO_SNDBUF, 16384);
    small[i].to_server = inet::fill_pattern(small[i].pair.client, 0, 5);
    inet::read_pattern(small[i].pair.server, 0, 1000, 5);
    before[i] = info_of(full[i].pair.client);
    CHECK((before[i].tcpi_options & (TCPI_OPT_WSCALE | TCPI_OPT_SACK | TCPI_OPT_TIMESTAMPS)) != 0);
  }

  probe::ready();
  probe::wait_for_go();

  for (int i = 0; i < 2; ++i) {
    const auto after = info_of(full[i].pair.client);
    constexpr unsigned agreed = TCPI_OPT_WSCALE | TCPI_OPT_SACK | TCPI_OPT_TIMESTAMPS;
    CHECK_EQUAL(after.tcpi_options & agreed, before[i].tcpi_options & agreed);
    CHECK_EQUAL(after.tcpi_snd_wscale, before[i].tcpi_snd_wscale);
    CHECK_EQUAL(after.tcpi_rcv_wscale, before[i].tcpi_rcv_wscale);
    inet::read_pattern(full[i].pair.server, 0, full[i].to_server, 1);
    inet::read_pattern(both_ways[i].pair.client, 0, both_ways[i].to_client, 3);
    inet::read_pattern(both_ways[i].pair.server, 0, both_ways[i].to_server, 2);
    inet::expect_option(corked[i].pair.client, SOL_TCP, TCP_CORK, 1);
    inet::set(corked[i].pair.client, SOL_TCP, TCP_CORK, 0);
    inet::read_pattern(corked[i].pair.server, 0, corked[i].to_server, 4);
    inet::read_pattern(small[i].pair.server, 1000, small[i].to_server - 1000, 5);
    for (const auto* stream : {&full[i], &both_ways[i], &corked[i], &small[i]}) inet::expect_alive(stream->pair);
    inet::write_pattern(full[i].pair.client, 0, 50000, 6), inet::read_pattern(full[i].pair.server, 0, 50000, 6);
  }
  return probe::passed();
}
