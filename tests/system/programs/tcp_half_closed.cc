// TCP connections that are being closed: one direction, both, one after the other, with bytes still under way; and
// sockets whose connection has ended.
// DUMP: --tcp-established
// RESTORE: --tcp-established
// FAIL_RESTORE
#include "inet.h"

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  constexpr int families[] = {AF_INET, AF_INET6};
  struct Case {
    inet::Pair silent, talking, both, ended, deaf;
  } cases[2];
  for (int i = 0; i < 2; ++i) {
    auto& one = cases[i];
    const int listener = inet::listening(families[i]);
    // FIN_WAIT2 and CLOSE_WAIT; then the same with bytes in both directions.
    one.silent = inet::connected(listener);
    CHECK(shutdown(one.silent.client, SHUT_WR) == 0);
    one.talking = inet::connected(listener);
    inet::write_pattern(one.talking.client, 0, 20000, 1), inet::write_pattern(one.talking.server, 0, 10000, 2);
    CHECK(shutdown(one.talking.client, SHUT_WR) == 0);
    inet::await_bytes(one.talking.server, 20000), inet::await_bytes(one.talking.client, 10000);
    for (const auto* pair : {&one.silent, &one.talking}) {
      inet::await_state(pair->client, TCP_FIN_WAIT2), inet::await_state(pair->server, TCP_CLOSE_WAIT);
    }
    // Both have said that they are done: the connection has ended, the descriptors have not.
    one.ended = inet::connected(listener);
    CHECK(shutdown(one.ended.client, SHUT_WR) == 0 && shutdown(one.ended.server, SHUT_WR) == 0);
    inet::await_state(one.ended.server, TCP_CLOSE);
    // A reset connection, whose error has been taken.
    one.both = inet::connected(listener);
    const linger at_once = {1, 0};
    CHECK(setsockopt(one.both.client, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0);
    CHECK(close(one.both.client) == 0);
    inet::await_state(one.both.server, TCP_CLOSE);
    CHECK_EQUAL(inet::get(one.both.server, SOL_SOCKET, SO_ERROR), ECONNRESET);
    // One that does not want to hear any more, which the other does not know.
    one.deaf = inet::connected(listener);
    CHECK(shutdown(one.deaf.server, SHUT_RD) == 0);
  }

  probe::ready();
  probe::wait_for_go();

  for (const auto& one : cases) {
    CHECK_EQUAL(inet::state_of(one.silent.client), TCP_FIN_WAIT2);
    CHECK_EQUAL(inet::state_of(one.silent.server), TCP_CLOSE_WAIT);
    inet::expect_broken(one.silent.client), inet::expect_end(one.silent.server);
    inet::write_pattern(one.silent.server, 0, 5000, 3), inet::read_pattern(one.silent.client, 0, 5000, 3);
    CHECK(close(one.silent.server) == 0);
    inet::expect_end(one.silent.client);

    inet::read_pattern(one.talking.server, 0, 20000, 1), inet::expect_end(one.talking.server);
    inet::write_pattern(one.talking.server, 10000, 5000, 2);
    CHECK(shutdown(one.talking.server, SHUT_WR) == 0);
    inet::read_pattern(one.talking.client, 0, 15000, 2), inet::expect_end(one.talking.client);

    for (const int fd : {one.ended.server, one.both.server}) {
      CHECK_EQUAL(inet::state_of(fd), TCP_CLOSE);
      inet::expect_end(fd), inet::expect_broken(fd);
    }
    inet::expect_end(one.deaf.server);
    inet::write_pattern(one.deaf.server, 0, 10, 4), inet::read_pattern(one.deaf.client, 0, 10, 4);
  }
  return probe::passed();
}
