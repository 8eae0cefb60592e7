// Pairs of unix sockets of all types: queues with their boundaries, directions shut down, ends that are closed with
// data left behind, options, ends shared by fork and dup.
// FAIL_RESTORE
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "probe.h"

static void make_pair(int type, int ends[2]) { CHECK(socketpair(AF_UNIX, type, 0, ends) == 0); }

static void say(int fd, const char* text) {
  CHECK(send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text));
}

/// The next receive brings exactly this.
static void expect(int fd, const char* text) {
  char got[256] = {};
  const ssize_t count = recv(fd, got, sizeof got - 1, MSG_DONTWAIT);
  CHECK_EQUAL(count, (ssize_t)strlen(text));
  CHECK(memcmp(got, text, strlen(text)) == 0);
}

static void expect_nothing(int fd) {
  char got[16];
  CHECK(recv(fd, got, sizeof got, MSG_DONTWAIT) == -1 && errno == EAGAIN);
}

static void expect_end(int fd) {
  char got[16];
  CHECK_EQUAL(recv(fd, got, sizeof got, MSG_DONTWAIT), 0);
}

static int option(int fd, int name) {
  int value = -1;
  socklen_t size = sizeof value;
  CHECK(getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0);
  return value;
}

static void set_option(int fd, int name, int value) {
  CHECK(setsockopt(fd, SOL_SOCKET, name, &value, sizeof value) == 0);
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  int stream[2], datagram[2], packet[2];
  make_pair(SOCK_STREAM | SOCK_CLOEXEC, stream);
  make_pair(SOCK_DGRAM | SOCK_NONBLOCK, datagram);
  make_pair(SOCK_SEQPACKET, packet);
  say(stream[0], "one"), say(stream[0], "two"), say(stream[1], "back");
  say(datagram[0], "first"), say(datagram[0], "second"), say(datagram[1], "answer");
  say(packet[0], "p1"), say(packet[0], "packet 2");
  // A stream with more in it than its buffers were made for.
  int large[2];
  make_pair(SOCK_STREAM, large);
  set_option(large[0], SO_SNDBUF, 150'000);
  static char block[200'000];
  for (size_t i = 0; i < sizeof block; ++i) block[i] = (char)(i * 7 + i / 251);
  const ssize_t stored = send(large[0], block, sizeof block, MSG_DONTWAIT);
  CHECK(stored > 100'000);
  set_option(large[0], SO_SNDBUF, 4096);

  // Half-closed, and closed with something left.
  int half[2], closed[2], reset[2], gone[2], gone_datagram[2], gone_packet[2];
  make_pair(SOCK_STREAM, half), make_pair(SOCK_STREAM, closed), make_pair(SOCK_STREAM, reset);
  make_pair(SOCK_STREAM, gone), make_pair(SOCK_DGRAM, gone_datagram), make_pair(SOCK_SEQPACKET, gone_packet);
  say(half[0], "last words");
  CHECK(shutdown(half[0], SHUT_WR) == 0);
  say(closed[0], "left behind");
  CHECK(close(closed[0]) == 0);
  say(reset[0], "before the reset"), say(reset[1], "never read");
  CHECK(close(reset[0]) == 0);
  CHECK(close(gone[0]) == 0);
  say(gone_datagram[0], "from the dead");
  CHECK(close(gone_datagram[0]) == 0);
  say(gone_packet[0], "a"), say(gone_packet[0], "b");
  CHECK(close(gone_packet[0]) == 0);
  const int alone = socket(AF_UNIX, SOCK_STREAM, 0);
  CHECK(alone >= 0 && shutdown(alone, SHUT_RD) == 0);

  // Options.
  int options[2];
  make_pair(SOCK_DGRAM, options);
  const struct timeval receive_timeout = {3, 250'000}, send_timeout = {0, 40'000};
  set_option(options[0], SO_RCVBUF, 30'000), set_option(options[0], SO_SNDBUF, 40'000);
  set_option(options[0], SO_PASSCRED, 1), set_option(options[0], SO_PASSSEC, 1);
  set_option(options[0], SO_PRIORITY, 5), set_option(options[0], SO_BROADCAST, 1);
  set_option(options[0], SO_KEEPALIVE, 1), set_option(options[0], SO_OOBINLINE, 1);
  CHECK(setsockopt(options[0], SOL_SOCKET, SO_RCVTIMEO, &receive_timeout, sizeof receive_timeout) == 0);
  CHECK(setsockopt(options[0], SOL_SOCKET, SO_SNDTIMEO, &send_timeout, sizeof send_timeout) == 0);
  const struct linger lingers = {1, 7};
  CHECK(setsockopt(options[0], SOL_SOCKET, SO_LINGER, &lingers, sizeof lingers) == 0);
  say(options[1], "skipped"), say(options[1], "peeked");
  set_option(options[0], SO_PEEK_OFF, 7);
  const int receive_buffer = option(options[0], SO_RCVBUF), send_buffer = option(options[0], SO_SNDBUF);

  // The same description twice, and in a child.
  const int copy = dup(stream[1]);
  CHECK(copy >= 0);
  int shared[2];
  make_pair(SOCK_SEQPACKET, shared);
  const pid_t child = fork();
  if (child == 0) {
    probe::wait_for_go();
    char text[16] = {};
    CHECK(recv(shared[1], text, sizeof text, 0) == 3 && memcmp(text, "end", 3) == 0);
    say(shared[1], "child");
    _exit(0);
  }
  probe::ready();
  probe::wait_for_go();

  expect(copy, "onetwo"), expect_nothing(stream[1]);
  expect(stream[0], "back");
  say(stream[0], "still"), expect(stream[1], "still");
  CHECK(fcntl(stream[0], F_GETFD) == FD_CLOEXEC);
  CHECK_EQUAL(fcntl(datagram[1], F_GETFL), O_RDWR | O_NONBLOCK);
  expect(datagram[1], "first"), expect(datagram[1], "second"), expect_nothing(datagram[1]);
  expect(datagram[0], "answer");
  say(datagram[1], "again"), expect(datagram[0], "again");

  static char received[sizeof block];
  ssize_t total = 0;
  for (ssize_t count; (count = recv(large[1], received + total, sizeof received - (size_t)total, MSG_DONTWAIT)) > 0;)
    total += count;
  CHECK_EQUAL(total, stored);
  CHECK(memcmp(received, block, (size_t)stored) == 0);
  CHECK_EQUAL(option(large[0], SO_SNDBUF), 8192);

  expect(half[1], "last words"), expect_end(half[1]);
  CHECK(send(half[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
  say(half[1], "the other way"), expect(half[0], "the other way");
  expect(closed[1], "left behind"), expect_end(closed[1]);
  CHECK(send(closed[1], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
  expect(reset[1], "before the reset");
  char byte;
  CHECK(recv(reset[1], &byte, 1, MSG_DONTWAIT) == -1 && errno == ECONNRESET);
  expect_end(gone[1]);
  struct pollfd hung_up = {gone[1], POLLIN, 0};
  CHECK(poll(&hung_up, 1, 0) == 1 && (hung_up.revents & POLLHUP) != 0);
  expect(gone_datagram[1], "from the dead"), expect_nothing(gone_datagram[1]);
  CHECK(send(gone_datagram[1], "x", 1, MSG_NOSIGNAL) == -1 && errno == ECONNREFUSED);
  expect(gone_packet[1], "a"), expect(gone_packet[1], "b"), expect_end(gone_packet[1]);
  struct pollfd shut = {alone, POLLRDHUP, 0};
  CHECK(poll(&shut, 1, 0) == 1 && (shut.revents & POLLRDHUP) != 0);

  CHECK_EQUAL(option(options[0], SO_RCVBUF), receive_buffer);
  CHECK_EQUAL(option(options[0], SO_SNDBUF), send_buffer);
  CHECK_EQUAL(option(options[0], SO_PASSCRED), 1);
  CHECK_EQUAL(option(options[0], SO_PASSSEC), 1);
  CHECK_EQUAL(option(options[0], SO_PRIORITY), 5);
  CHECK_EQUAL(option(options[0], SO_BROADCAST), 1);
  CHECK_EQUAL(option(options[0], SO_KEEPALIVE), 1);
  CHECK_EQUAL(option(options[0], SO_OOBINLINE), 1);
  CHECK_EQUAL(option(options[0], SO_PEEK_OFF), 7);
  CHECK_EQUAL(option(options[1], SO_PASSCRED), 0);
  struct timeval time = {};
  socklen_t size = sizeof time;
  CHECK(getsockopt(options[0], SOL_SOCKET, SO_RCVTIMEO, &time, &size) == 0);
  CHECK(time.tv_sec == 3 && time.tv_usec / 100'000 == 2);
  CHECK(getsockopt(options[0], SOL_SOCKET, SO_SNDTIMEO, &time, &size) == 0);
  CHECK(time.tv_sec == 0 && time.tv_usec == 40'000);
  struct linger lingering = {};
  size = sizeof lingering;
  CHECK(getsockopt(options[0], SOL_SOCKET, SO_LINGER, &lingering, &size) == 0);
  CHECK(lingering.l_onoff == 1 && lingering.l_linger == 7);
  char peeked[16] = {};
  CHECK(recv(options[0], peeked, sizeof peeked, MSG_DONTWAIT | MSG_PEEK) == 6 && memcmp(peeked, "peeked", 6) == 0);

  expect(packet[1], "p1"), expect(packet[1], "packet 2");
  say(shared[0], "end");
  char text[16] = {};
  CHECK(recv(shared[0], text, sizeof text, 0) == 5 && memcmp(text, "child", 5) == 0);
  probe::expect_child_passed(child);
  return probe::passed();
}
