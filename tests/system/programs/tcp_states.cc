// TCP connections in the states that pass quickly, held there by sockets that are deaf: connecting (without waiting,
// and in a process that sleeps in connect(2)), FIN_WAIT1, CLOSING and LAST_ACK, empty and with bytes under way; and a
// listening socket beside connections of its port that are in TIME_WAIT.
// DUMP: --tcp-established
// RESTORE: --tcp-established
// FAIL_RESTORE
// ROOT: filters of sockets count against a limit that all users share (net.core.bpf_jit_limit)
#include "inet.h"

constexpr int families[] = {AF_INET, AF_INET6};
constexpr size_t forth = 20000, back = 3000;  // bytes under way

struct Connecting {
  int listener = -1, client = -1, of_child = -1;
  pid_t child = 0;

  void begin(int family) {
    listener = inet::listening(family);
    inet::make_deaf(listener);
    const auto to = inet::address_of(listener);
    client = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    CHECK(connect(client, to.pointer(), to.size) < 0 && errno == EINPROGRESS);
    of_child = socket(family, SOCK_STREAM, 0);
    child = probe::start([&] {
      CHECK(connect(of_child, to.pointer(), to.size) == 0);
      inet::write_pattern(of_child, 0, back, 9);
    });
    inet::await_state(of_child, TCP_SYN_SENT);
    CHECK_EQUAL(inet::state_of(client), TCP_SYN_SENT);
  }
  void release() const {
    CHECK_EQUAL(inet::state_of(client), TCP_SYN_SENT);
    CHECK_EQUAL(inet::state_of(of_child), TCP_SYN_SENT);
    inet::make_hear(listener);
  }
  void finish() const {
    const int servers[] = {accept(listener, nullptr, nullptr), accept(listener, nullptr, nullptr)};
    const bool child_first = inet::address_of(servers[0], getpeername).port() == inet::address_of(of_child).port();
    pollfd writable = {client, POLLOUT, 0};
    CHECK(poll(&writable, 1, -1) == 1);
    CHECK_EQUAL(inet::get(client, SOL_SOCKET, SO_ERROR), 0);
    CHECK(fcntl(client, F_SETFL, 0) == 0);
    inet::expect_alive({client, servers[child_first ? 1 : 0]});
    inet::read_pattern(servers[child_first ? 0 : 1], 0, back, 9);
    probe::expect_child_passed(child);
  }
};

/// The client has said that it is done, and does not know that the server has not heard of it.
struct FirstFin {
  inet::Pair pair;
  size_t size = 0;

  void begin(int listener, size_t bytes) {
    size = bytes;
    pair = inet::connected(listener);
    inet::make_deaf(pair.server);
    inet::write_pattern(pair.client, 0, size, 1);
    CHECK(shutdown(pair.client, SHUT_WR) == 0);
    inet::await_state(pair.client, TCP_FIN_WAIT1);
  }
  void release() const {
    CHECK_EQUAL(inet::state_of(pair.client), TCP_FIN_WAIT1);
    CHECK_EQUAL(inet::state_of(pair.server), TCP_ESTABLISHED);
    inet::expect_broken(pair.client);
    inet::make_hear(pair.server);
  }
  void finish() const {
    inet::read_pattern(pair.server, 0, size, 1), inet::expect_end(pair.server);
    inet::await_state(pair.client, TCP_FIN_WAIT2);
    inet::write_pattern(pair.server, 0, back, 2), inet::read_pattern(pair.client, 0, back, 2);
    CHECK(shutdown(pair.server, SHUT_WR) == 0);  // children have its descriptor, too
    inet::expect_end(pair.client);
  }
};

/// Both have said that they are done. The client has heard it of the server, the server has heard nothing.
struct Crossing {
  inet::Pair pair;
  size_t size = 0;

  void begin(int listener, size_t bytes) {
    size = bytes;
    pair = inet::connected(listener);
    inet::make_deaf(pair.client), inet::make_deaf(pair.server);
    inet::write_pattern(pair.client, 0, size, 3), inet::write_pattern(pair.server, 0, size, 4);
    CHECK(shutdown(pair.client, SHUT_WR) == 0 && shutdown(pair.server, SHUT_WR) == 0);
    inet::make_hear(pair.client);
    inet::await_state(pair.client, TCP_CLOSING);
  }
  void release() const {
    CHECK_EQUAL(inet::state_of(pair.client), TCP_CLOSING);
    CHECK_EQUAL(inet::state_of(pair.server), TCP_FIN_WAIT1);
    inet::make_hear(pair.server);
  }
  void finish() const {
    inet::read_pattern(pair.server, 0, size, 3), inet::expect_end(pair.server);
    inet::read_pattern(pair.client, 0, size, 4), inet::expect_end(pair.client);
    inet::await_state(pair.client, TCP_CLOSE), inet::await_state(pair.server, TCP_CLOSE);
  }
};

/// The server is done as the client was before, who has not heard of it.
struct LastFin {
  inet::Pair pair;
  size_t size = 0;

  void begin(int listener, size_t bytes) {
    size = bytes;
    pair = inet::connected(listener);
    inet::write_pattern(pair.client, 0, size, 5);
    CHECK(shutdown(pair.client, SHUT_WR) == 0);
    inet::await_state(pair.client, TCP_FIN_WAIT2);
    inet::make_deaf(pair.client);
    inet::write_pattern(pair.server, 0, size, 6);
    CHECK(shutdown(pair.server, SHUT_WR) == 0);
    inet::await_state(pair.server, TCP_LAST_ACK);
  }
  void release() const {
    CHECK_EQUAL(inet::state_of(pair.client), TCP_FIN_WAIT2);
    CHECK_EQUAL(inet::state_of(pair.server), TCP_LAST_ACK);
    inet::read_pattern(pair.server, 0, size, 5), inet::expect_end(pair.server);
    inet::expect_broken(pair.server);
    inet::make_hear(pair.client);
  }
  void finish() const {
    inet::read_pattern(pair.client, 0, size, 6), inet::expect_end(pair.client);
    inet::await_state(pair.server, TCP_CLOSE);
  }
};

/// Whether the system has a connection of this local port in TIME_WAIT.
static bool waits(int family, uint16_t port) {
  FILE* list = fopen(family == AF_INET6 ? "/proc/net/tcp6" : "/proc/net/tcp", "r");
  CHECK(list != nullptr);
  char line[512];
  bool found = false;
  while (fgets(line, sizeof line, list) != nullptr) {
    unsigned local = 0, state = 0;
    if (sscanf(line, "%*d: %*[0-9A-F]:%x %*[0-9A-F]:%*x %x", &local, &state) == 2)
      found = found || (local == port && state == TCP_TIME_WAIT);
  }
  fclose(list);
  return found;
}

struct Waiting {
  int listener = -1;

  void begin(int family) {
    listener = inet::listening(family, SO_REUSEADDR);  // otherwise nobody may have the port for a minute
    const auto pair = inet::connected(listener);
    CHECK(shutdown(pair.server, SHUT_WR) == 0);
    inet::expect_end(pair.client);
    CHECK(close(pair.client) == 0 && close(pair.server) == 0);
    while (!waits(family, inet::address_of(listener).port())) usleep(500);
  }
  void finish() const {
    inet::expect_option(listener, SOL_SOCKET, SO_REUSEADDR, 1);
    inet::expect_alive(inet::connected(listener));
  }
};

struct Case {
  int listener;
  Connecting connecting;
  FirstFin first[2];
  Crossing crossing[2];
  LastFin last[2];
  Waiting waiting;
};

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  Case cases[2];
  for (int i = 0; i < 2; ++i) {
    auto& one = cases[i];
    one.listener = inet::listening(families[i]);
    one.waiting.begin(families[i]);
    for (int full = 0; full < 2; ++full) {
      const size_t size = full != 0 ? forth : 0;
      one.first[full].begin(one.listener, size);
      one.crossing[full].begin(one.listener, size);
      one.last[full].begin(one.listener, size);
    }
    one.connecting.begin(families[i]);
  }

  probe::ready();
  probe::wait_for_go();

  // All are heard before the first is waited for: the longer nobody answers the more rarely they try again.
  for (const auto& one : cases) {
    for (const auto& each : one.first) each.release();
    for (const auto& each : one.crossing) each.release();
    for (const auto& each : one.last) each.release();
    one.connecting.release();
  }
  for (const auto& one : cases) {
    one.connecting.finish();
    for (const auto& each : one.first) each.finish();
    for (const auto& each : one.crossing) each.finish();
    for (const auto& each : one.last) each.finish();
    one.waiting.finish();
    inet::expect_alive(inet::connected(one.listener));
  }
  return probe::passed();
}
