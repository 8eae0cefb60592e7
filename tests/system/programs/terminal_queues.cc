// What waits in pseudo-terminals to be read: lines, half a line and an end of file in canonical mode, bytes of all
// values in raw mode, and output, with processing and in packet mode.
// FAIL_RESTORE
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

#include "probe.h"

namespace {

struct Pair {
  int master = -1, slave = -1;
};

Pair make_pair(void (*change)(termios&)) {
  Pair pair;
  pair.master = posix_openpt(O_RDWR | O_NOCTTY);
  char path[64];
  CHECK(pair.master >= 0 && unlockpt(pair.master) == 0 && ptsname_r(pair.master, path, sizeof path) == 0);
  pair.slave = open(path, O_RDWR | O_NOCTTY);
  CHECK(pair.slave >= 0);
  termios modes;
  CHECK(tcgetattr(pair.slave, &modes) == 0);
  modes.c_lflag &= ~static_cast<tcflag_t>(ECHO);
  change(modes);
  CHECK(tcsetattr(pair.slave, TCSANOW, &modes) == 0);
  return pair;
}

void type(const Pair& pair, const void* bytes, size_t length) {
  CHECK(write(pair.master, bytes, length) == static_cast<ssize_t>(length));
}

void expect(int fd, const char* what, const void* bytes, size_t length) {
  char got[16384] = {};
  size_t done = 0;
  while (done < length) {
    pollfd readable = {fd, POLLIN, 0};
    if (poll(&readable, 1, 10'000) != 1) probe::failed("%s: %zu of %zu bytes come", what, done, length);
    const ssize_t part = read(fd, got + done, length - done);
    if (part <= 0) probe::failed("%s: read gives %zd after %zu bytes: %s", what, part, done, strerror(errno));
    done += static_cast<size_t>(part);
  }
  if (memcmp(got, bytes, length) != 0) probe::failed("%s is another: '%s'", what, got);
}

void expect_line(const Pair& pair, const char* line) {
  char got[256] = {};
  const ssize_t length = read(pair.slave, got, sizeof got - 1);
  if (length != static_cast<ssize_t>(strlen(line)) || strcmp(got, line) != 0)
    probe::failed("a line is '%s' (%zd) instead of '%s'", got, length, line);
}

void expect_nothing(int fd) {
  pollfd readable = {fd, POLLIN, 0};
  CHECK_EQUAL(poll(&readable, 1, 0), 0);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  const Pair lines = make_pair([](termios& modes) { modes.c_cc[VEOL] = ';'; });
  constexpr char typed[] = "first\nsecond\rthird;cut\x04\x04\x16\x03 quoted\nfiftx\x7fy";
  type(lines, typed, sizeof typed - 1);

  const Pair raw = make_pair([](termios& modes) { cfmakeraw(&modes); });
  unsigned char all[256];
  for (int i = 0; i < 256; ++i) all[i] = static_cast<unsigned char>(i);
  type(raw, all, sizeof all);
  CHECK(write(raw.slave, all, sizeof all) == sizeof all);

  const Pair screen = make_pair([](termios&) {});
  CHECK(write(screen.slave, "one\ntwo\n", 8) == 8);

  const Pair echo = make_pair([](termios& modes) { modes.c_lflag |= ECHO; });
  type(echo, "half", 4);

  // Nothing echoes these.
  Pair ended[16];
  for (auto& pair : ended) {
    pair = make_pair([](termios& modes) { modes.c_lflag |= ECHO; });
    type(pair, "\x04\x04", 2);
  }

  const Pair packets = make_pair([](termios& modes) { cfmakeraw(&modes); });
  CHECK(write(packets.slave, "packet", 6) == 6);
  const int on = 1;
  CHECK(ioctl(packets.master, TIOCPKT, &on) == 0);

  const Pair full = make_pair([](termios& modes) { cfmakeraw(&modes); });
  static char filling[16384];
  for (size_t i = 0; i < sizeof filling; ++i) filling[i] = static_cast<char>('a' + i % 23);
  CHECK(fcntl(full.slave, F_SETFL, O_NONBLOCK) == 0);
  size_t filled = 0;
  for (ssize_t part = 0; filled < 9000 && (part = write(full.slave, filling + filled, 9000 - filled)) > 0;)
    filled += static_cast<size_t>(part);
  CHECK(filled > 4096);
  usleep(50'000);  // the line disciplines do their part

  probe::ready();
  probe::wait_for_go();

  expect_line(lines, "first\n");
  expect_line(lines, "second\n");
  expect_line(lines, "third;");
  expect_line(lines, "cut");
  expect_line(lines, "");
  expect_line(lines, "\x03 quoted\n");
  expect_nothing(lines.slave);
  type(lines, "!\n", 2);
  expect_line(lines, "fifty!\n");

  expect(raw.slave, "raw input", all, sizeof all);
  expect(raw.master, "raw output", all, sizeof all);
  expect_nothing(raw.slave);
  expect_nothing(raw.master);
  expect(screen.master, "processed output", "one\r\ntwo\r\n", 10);
  expect_nothing(screen.master);
  expect(echo.master, "echo", "half", 4);
  type(echo, " done\n", 6);
  expect_line(echo, "half done\n");
  expect(echo.master, "echo", " done\r\n", 7);

  for (const auto& pair : ended) {
    expect_line(pair, "");
    expect_line(pair, "");
    expect_nothing(pair.slave);
    expect_nothing(pair.master);
    type(pair, "line\n", 5);
    expect_line(pair, "line\n");
    expect(pair.master, "echo", "line\r\n", 6);
  }

  char packet[16] = {};
  ssize_t got = 0;
  do {
    got = read(packets.master, packet, sizeof packet);
  } while (got > 0 && packet[0] != TIOCPKT_DATA);
  CHECK(got == 7 && memcmp(packet + 1, "packet", 6) == 0);
  expect(full.master, "a long output", filling, filled);
  expect_nothing(full.master);
  return probe::passed();
}
