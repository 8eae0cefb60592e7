// Connections whose clients have sent something before anybody has accepted them: what that was cannot be seen, so that
// a dump lets the program go on for a moment and looks again. This one accepts them once it has been looked at: being
// stopped by a tracer interrupts epoll_wait (signal(7), "Interruption of system calls and library functions by stop
// signals").
// DUMP: --tcp-established
// RESTORE: --tcp-established
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "inet.h"

static void expect(int fd, const char* text) {
  char got[64] = "";
  CHECK(recv(fd, got, sizeof got, 0) == (ssize_t)strlen(text));
  CHECK(strcmp(got, text) == 0);
}

static void say(int fd, const char* text) { CHECK(send(fd, text, strlen(text), 0) == (ssize_t)strlen(text)); }

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  const int on_name = socket(AF_UNIX, SOCK_STREAM, 0), on_port = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_un any_name = {};
  any_name.sun_family = AF_UNIX;
  CHECK(bind(on_name, (const sockaddr*)&any_name, sizeof any_name.sun_family) == 0 && listen(on_name, 2) == 0);
  socklen_t size = sizeof any_name;
  CHECK(getsockname(on_name, (sockaddr*)&any_name, &size) == 0);
  const auto any_port = inet::loopback(AF_INET);
  CHECK(bind(on_port, any_port.pointer(), any_port.size) == 0 && listen(on_port, 2) == 0);
  const auto port = inet::address_of(on_port);

  const int to_name = socket(AF_UNIX, SOCK_STREAM, 0), to_port = socket(AF_INET, SOCK_STREAM, 0);
  CHECK(connect(to_name, (const sockaddr*)&any_name, size) == 0);
  CHECK(connect(to_port, port.pointer(), port.size) == 0);
  say(to_name, "to a name"), say(to_port, "to a port");

  const int nothing = epoll_create1(0);
  CHECK(nothing >= 0);
  probe::ready();
  epoll_event event;
  CHECK(epoll_wait(nothing, &event, 1, -1) == -1 && errno == EINTR);
  const int from_name = accept(on_name, nullptr, nullptr), from_port = accept(on_port, nullptr, nullptr);
  CHECK(from_name >= 0 && from_port >= 0);
  probe::wait_for_go();

  expect(from_name, "to a name"), expect(from_port, "to a port");
  say(from_name, "and back"), say(from_port, "and back");
  expect(to_name, "and back"), expect(to_port, "and back");
  return probe::passed();
}
