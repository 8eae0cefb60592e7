// Connections that have ended while their sockets are open, by a reset or in good order: what came is still to be
// received, and an error to be reported, unless it has been.
// FAIL_RESTORE
#include "inet.h"

namespace {

constexpr const char* text = "not read yet";

struct Ended {
  int fd;
  const char* unread;
  int error;  // that waits to be reported
  bool receives_error;
  sockaddr_storage name;
};

void reset(int fd) {
  const linger at_once = {1, 0};
  CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0 && close(fd) == 0);
}

sockaddr_storage name_of(int fd) {
  sockaddr_storage name = {};
  socklen_t size = sizeof name;
  CHECK(getsockname(fd, (sockaddr*)&name, &size) == 0);
  return name;
}

void send_text(int fd) { CHECK(send(fd, text, strlen(text), 0) == (ssize_t)strlen(text)); }

Ended ended(int fd, const char* unread, int error, bool receives_error) {
  while (inet::state_of(fd) != TCP_CLOSE) usleep(1000);
  return {fd, unread, error, receives_error, name_of(fd)};
}

Ended by_reset(int listener, bool with_text) {
  const auto pair = inet::connected(listener);
  if (with_text) send_text(pair.client);
  reset(pair.client);
  return ended(pair.server, with_text ? text : "", ECONNRESET, true);
}

Ended by_reset_of_the_client(int listener) {
  const auto pair = inet::connected(listener);
  send_text(pair.server);
  reset(pair.server);
  return ended(pair.client, text, ECONNRESET, true);
}

Ended by_reset_behind_the_end(int listener) {
  const auto pair = inet::connected(listener);
  send_text(pair.client);
  CHECK(shutdown(pair.client, SHUT_WR) == 0);
  while (inet::state_of(pair.server) != TCP_CLOSE_WAIT) usleep(1000);
  reset(pair.client);
  return ended(pair.server, text, EPIPE, false);
}

Ended by_reset_that_was_told(int listener) {
  auto one = by_reset(listener, true);
  int error = 0;
  socklen_t size = sizeof error;
  CHECK(getsockopt(one.fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0);
  CHECK_EQUAL(error, ECONNRESET);
  one.error = 0, one.receives_error = false;
  return one;
}

Ended in_good_order(int listener) {
  const auto pair = inet::connected(listener);
  CHECK(shutdown(pair.client, SHUT_WR) == 0);
  send_text(pair.server);
  CHECK(close(pair.server) == 0);
  return ended(pair.client, text, 0, false);
}

void check(const Ended& one) {
  CHECK_EQUAL(inet::state_of(one.fd), TCP_CLOSE);
  const auto name = name_of(one.fd);
  CHECK(memcmp(&name, &one.name, sizeof name) == 0);
  char bytes[64] = {};
  if (*one.unread != '\0') {
    CHECK_EQUAL(recv(one.fd, bytes, sizeof bytes, 0), strlen(one.unread));
    CHECK(strcmp(bytes, one.unread) == 0);
  }
  if (one.receives_error) {
    CHECK(recv(one.fd, bytes, sizeof bytes, 0) < 0);
    CHECK_EQUAL(errno, one.error);
  } else {
    int error = 0;
    socklen_t size = sizeof error;
    CHECK(getsockopt(one.fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0);
    CHECK_EQUAL(error, one.error);
  }
  inet::expect_end(one.fd), inet::expect_broken(one.fd);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  constexpr int families[] = {AF_INET, AF_INET6};
  int listeners[2];
  Ended all[2][6];
  for (int i = 0; i < 2; ++i) {
    const int listener = listeners[i] = inet::listening(families[i], SO_REUSEADDR);
    const Ended made[] = {by_reset(listener, true),         by_reset(listener, false),
                          by_reset_of_the_client(listener), by_reset_behind_the_end(listener),
                          by_reset_that_was_told(listener), in_good_order(listener)};
    memcpy(all[i], made, sizeof made);
  }
  probe::ready();
  probe::wait_for_go();
  for (int i = 0; i < 2; ++i) {
    for (const auto& one : all[i]) check(one);
    inet::expect_alive(inet::connected(listeners[i]));
  }
  return probe::passed();
}
