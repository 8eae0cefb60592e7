// Terminals of the machine: a virtual terminal that controls a session with a job in its foreground, opened by its name
// and as /dev/tty; another that controls nobody, opened twice, of which one is for reading only.
// REQUIRES: [ -c /dev/tty41 ] && [ -c /dev/tty42 ] || { echo "there are no virtual terminals"; false; }
// FAIL_RESTORE
// ROOT: virtual terminals are root's
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <termios.h>

#include "probe.h"

namespace {

constexpr const char *leading = "/dev/tty41", *other = "/dev/tty42";

struct Board {
  volatile int set_up, interrupts;
};
Board* board;

termios changed(int terminal, cc_t key) {
  termios modes = {};
  CHECK(tcgetattr(terminal, &modes) == 0);
  modes.c_lflag &= ~static_cast<tcflag_t>(ECHO);
  modes.c_cc[VINTR] = key;
  CHECK(tcsetattr(terminal, TCSANOW, &modes) == 0);
  return modes;
}

void expect_modes(int terminal, const termios& modes) {
  termios found = {};
  CHECK(tcgetattr(terminal, &found) == 0);
  CHECK(found.c_lflag == modes.c_lflag && memcmp(found.c_cc, modes.c_cc, sizeof found.c_cc) == 0);
}

unsigned device_behind(int terminal) {
  unsigned device = 0;
  CHECK(ioctl(terminal, TIOCGDEV, &device) == 0);
  return device;
}

/// In the foreground.
[[noreturn]] void job() {
  signal(SIGINT, [](int) { board->interrupts = board->interrupts + 1; });
  while (tcgetpgrp(0) != getpid()) usleep(1000);
  const int door = open("/dev/tty", O_RDWR);
  CHECK(door >= 0);
  board->set_up = 1;
  probe::wait_for_go();
  CHECK_EQUAL(tcgetpgrp(door), getpid());
  CHECK_EQUAL(device_behind(door), makedev(4, 41));
  CHECK(write(door, "on the terminal\n", 16) == 16);
  for (int i = 0; i < 1000 && board->interrupts == 0; ++i) usleep(10'000);
  _exit(board->interrupts == 1 ? 0 : 1);
}

[[noreturn]] void leader() {
  CHECK(setsid() == getpid());
  const int terminal = open(leading, O_RDWR);  // acquires it
  CHECK(terminal >= 0 && dup2(terminal, 0) == 0);
  if (terminal != 0) close(terminal);
  CHECK(tcgetsid(0) == getpid());
  signal(SIGTTOU, SIG_IGN);
  const termios modes = changed(0, 'X' & 0x1f);
  const pid_t child = fork();
  if (child == 0) {
    CHECK(setpgid(0, 0) == 0);
    job();
  }
  CHECK(setpgid(child, child) == 0 || errno == EACCES);
  CHECK(tcsetpgrp(0, child) == 0);
  probe::wait_for_go();
  CHECK_EQUAL(tcgetsid(0), getpid());
  CHECK_EQUAL(tcgetpgrp(0), child);
  expect_modes(0, modes);
  CHECK_EQUAL(kill(-tcgetpgrp(0), SIGINT), 0);
  probe::expect_child_passed(child);
  _exit(0);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  board = probe::shared_memory<Board>();
  const int both = open(other, O_RDWR | O_NOCTTY | O_APPEND), reading = open(other, O_RDONLY | O_NOCTTY | O_NONBLOCK);
  CHECK(both >= 0 && reading >= 0);
  const termios modes = changed(both, 'Y' & 0x1f);
  const pid_t child = fork();
  if (child == 0) {
    close(both), close(reading);
    leader();
  }
  probe::await(&board->set_up, 1);
  probe::ready();
  probe::wait_for_go();

  expect_modes(reading, modes);
  CHECK_EQUAL(fcntl(both, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK), O_RDWR | O_APPEND);
  CHECK_EQUAL(fcntl(reading, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDONLY | O_NONBLOCK);
  CHECK_EQUAL(device_behind(both), makedev(4, 42));
  CHECK(write(both, "on the other\n", 13) == 13);
  probe::expect_child_passed(child);
  return probe::passed();
}
