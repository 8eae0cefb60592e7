// A virtual terminal and the console, neither of which controls anybody: they are opened again.
// DUMP: --shell-job
// RESTORE: --shell-job
// REQUIRES: (exec 3<>/dev/tty1 4<>/dev/console) 2>&1
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <termios.h>

#include "probe.h"

namespace {

void expect_device(int fd, unsigned major_number, unsigned minor_number, int flags) {
  struct stat about;
  CHECK(fstat(fd, &about) == 0 && S_ISCHR(about.st_mode));
  CHECK_EQUAL(major(about.st_rdev), major_number);
  CHECK_EQUAL(minor(about.st_rdev), minor_number);
  CHECK_EQUAL(fcntl(fd, F_GETFL) & (O_ACCMODE | O_NONBLOCK), flags);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  const int terminal = open("/dev/tty1", O_RDWR | O_NOCTTY),
            other = open("/dev/tty1", O_RDONLY | O_NOCTTY | O_NONBLOCK);
  const int console = open("/dev/console", O_WRONLY | O_NOCTTY);
  CHECK(terminal >= 0 && other >= 0 && console >= 0);
  termios modes = {}, now = {};
  winsize size = {}, size_now = {};
  CHECK(tcgetattr(terminal, &modes) == 0 && ioctl(terminal, TIOCGWINSZ, &size) == 0);

  probe::ready();
  probe::wait_for_go();

  expect_device(terminal, 4, 1, O_RDWR);
  expect_device(other, 4, 1, O_RDONLY | O_NONBLOCK);
  expect_device(console, 5, 1, O_WRONLY);
  CHECK(tcgetattr(other, &now) == 0 && ioctl(other, TIOCGWINSZ, &size_now) == 0);
  CHECK(memcmp(&now, &modes, sizeof now) == 0 && memcmp(&size_now, &size, sizeof size) == 0);
  char byte;
  CHECK(read(other, &byte, 1) < 0 && errno == EAGAIN);
  return probe::passed();
}
