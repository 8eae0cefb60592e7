// Established TCP connections with both ends in the tree, in both families: idle, with bytes that wait to be received,
// and one to a server in another process, which sleeps in recv(2).
// DUMP: --tcp-established
// RESTORE: --tcp-established
// FAIL_RESTORE
#include "inet.h"

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  constexpr int families[] = {AF_INET, AF_INET6};
  struct Case {
    int listener = -1;
    inet::Pair idle, waiting;
    inet::Address client, server;
  } cases[2];
  for (int i = 0; i < 2; ++i) {
    auto& one = cases[i];
    one.listener = inet::listening(families[i]);
    one.idle = inet::connected(one.listener), one.waiting = inet::connected(one.listener);
    inet::write_pattern(one.waiting.client, 0, 30000, 1), inet::write_pattern(one.waiting.server, 0, 5, 2);
    inet::await_bytes(one.waiting.server, 30000), inet::await_bytes(one.waiting.client, 5);
    inet::await_acknowledged(one.waiting.client), inet::await_acknowledged(one.waiting.server);
    inet::expect_alive(one.idle);
    one.client = inet::address_of(one.idle.client), one.server = inet::address_of(one.idle.server);
  }
  // A server in a child, whose listening socket both have.
  const int listener = cases[0].listener;
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    for (const auto& one : cases) close(one.idle.client);
    const int server = accept(listener, nullptr, nullptr);
    CHECK(server >= 0);
    char byte = 0;
    while (recv(server, &byte, 1, 0) == 1) CHECK(send(server, &byte, 1, MSG_NOSIGNAL) == 1);
    _exit(0);
  }
  const auto to = inet::address_of(listener);
  const int client = socket(AF_INET, SOCK_STREAM, 0);
  CHECK(client >= 0 && connect(client, to.pointer(), to.size) == 0);
  const auto echo = [&](char byte) {
    char got = 0;
    CHECK(send(client, &byte, 1, MSG_NOSIGNAL) == 1 && recv(client, &got, 1, 0) == 1);
    CHECK_EQUAL(got, byte);
  };
  echo('a');
  inet::await_acknowledged(client);

  probe::ready();
  probe::wait_for_go();

  for (auto& one : cases) {
    inet::expect_same(inet::address_of(one.idle.client), one.client);
    inet::expect_same(inet::address_of(one.idle.server), one.server);
    inet::expect_same(inet::address_of(one.idle.client, getpeername), one.server);
    CHECK_EQUAL(inet::waiting_in(one.waiting.server), 30000);
    inet::read_pattern(one.waiting.server, 0, 30000, 1), inet::read_pattern(one.waiting.client, 0, 5, 2);
    inet::expect_alive(one.waiting), inet::expect_alive(one.idle);
    inet::expect_alive(inet::connected(one.listener));
    CHECK(close(one.idle.client) == 0);
    char byte = 0;
    CHECK_EQUAL(recv(one.idle.server, &byte, 1, 0), 0);
  }
  echo('b'), echo('c');
  CHECK(close(client) == 0);
  probe::expect_child_passed(child);
  return probe::passed();
}
