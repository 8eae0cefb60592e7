// Pseudo-terminals that control nobody, in every state: never opened, closed again, hung up, open several times, raw,
// in packet mode, exclusive, locked, and with a slave side that only another process has.
// FAIL_RESTORE
// ROOT: gives a terminal away
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

#include <initializer_list>

#include "probe.h"

namespace {

struct Pair {
  int master = -1;
  char path[64] = {};
};

Pair make_pair(bool unlocked = true) {
  Pair pair;
  pair.master = posix_openpt(O_RDWR | O_NOCTTY);
  CHECK(pair.master >= 0 && ptsname_r(pair.master, pair.path, sizeof pair.path) == 0);
  if (unlocked) CHECK(unlockpt(pair.master) == 0);
  return pair;
}

int open_slave(const Pair& pair, int flags = O_RDWR) {
  const int fd = open(pair.path, flags | O_NOCTTY);
  CHECK(fd >= 0);
  return fd;
}

bool flag(int fd, unsigned long request) {
  int value = 0;
  CHECK(ioctl(fd, request, &value) == 0);
  return value != 0;
}

bool is_hung_up(int fd) {
  pollfd asked = {fd, POLLIN, 0};
  CHECK(poll(&asked, 1, 0) >= 0);
  return (asked.revents & POLLHUP) != 0;
}

/// struct termios2 of the kernel, which the C library does not have.
struct Modes {
  unsigned flags[4];
  unsigned char line, characters[19];
  unsigned input_speed, output_speed;
};
constexpr unsigned long get_modes = _IOR('T', 0x2A, Modes), set_modes = _IOW('T', 0x2B, Modes);

/// A speed that has no name.
void set_speed(int fd, unsigned speed) {
  constexpr unsigned all_speeds = 0010017, other = 0010000;  // CBAUD, BOTHER
  Modes modes;
  CHECK(ioctl(fd, get_modes, &modes) == 0);
  modes.flags[2] = (modes.flags[2] & ~all_speeds) | other;
  modes.input_speed = modes.output_speed = speed;
  CHECK(ioctl(fd, set_modes, &modes) == 0);
}
unsigned speed_of(int fd) {
  Modes modes;
  CHECK(ioctl(fd, get_modes, &modes) == 0);
  return modes.output_speed;
}

void make_raw(int fd) {
  termios modes;
  CHECK(tcgetattr(fd, &modes) == 0);
  cfmakeraw(&modes);
  modes.c_cc[VMIN] = 7, modes.c_cc[VTIME] = 3;
  CHECK(tcsetattr(fd, TCSANOW, &modes) == 0);
}

void check_name(const Pair& pair) {
  char path[64];
  CHECK(ptsname_r(pair.master, path, sizeof path) == 0 && strcmp(path, pair.path) == 0);
}

/// Through the line discipline of a raw terminal, in both directions.
void exchange(int master, int slave) {
  char text[16] = {};
  CHECK(write(master, "to slave", 8) == 8 && read(slave, text, sizeof text) == 8 && memcmp(text, "to slave", 8) == 0);
  CHECK(write(slave, "to master", 9) == 9 && read(master, text, sizeof text) == 9 && memcmp(text, "to master", 9) == 0);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);

  const Pair untouched = make_pair();
  const Pair closed = make_pair();
  close(open_slave(closed));
  const Pair locked = make_pair(false);

  const Pair gone = make_pair();
  const int hung[2] = {open_slave(gone), open_slave(gone, O_WRONLY | O_NONBLOCK)};
  const int hung_copy = dup(hung[0]);
  close(gone.master);

  const Pair several = make_pair();
  const int slave = open_slave(several), reader = open_slave(several, O_RDONLY | O_NONBLOCK),
            writer = open_slave(several, O_WRONLY | O_APPEND);
  make_raw(slave);
  set_speed(slave, 12345);
  CHECK(fcntl(several.master, F_SETFL, O_NONBLOCK) == 0);
  CHECK(fchown(slave, 1, 5) == 0 && fchmod(slave, 0624) == 0);

  const Pair packets = make_pair();
  const int on = 1;
  CHECK(ioctl(packets.master, TIOCPKT, &on) == 0);
  const int packet_slave = open_slave(packets);
  make_raw(packet_slave);

  const Pair exclusive = make_pair();
  const int exclusive_slave = open_slave(exclusive);
  CHECK(ioctl(exclusive_slave, TIOCEXCL) == 0);

  const Pair elsewhere = make_pair();
  make_raw(elsewhere.master);
  auto* opened = probe::shared_memory<volatile int>();
  const pid_t child = fork();
  if (child == 0) {
    close(elsewhere.master);
    const int own = open_slave(elsewhere);
    *opened = 1;
    char text[16] = {};
    CHECK(read(own, text, 7) == 7 && write(own, text, 7) == 7);  // VMIN
    _exit(0);
  }
  probe::await(opened, 1);

  probe::ready();
  probe::wait_for_go();

  for (const Pair* pair : {&untouched, &closed, &locked, &several, &packets, &exclusive, &elsewhere}) check_name(*pair);
  CHECK(!is_hung_up(untouched.master));
  CHECK(is_hung_up(closed.master));
  char byte = 0;
  CHECK(read(closed.master, &byte, 1) == -1 && errno == EIO);
  CHECK(flag(locked.master, TIOCGPTLCK) && !flag(several.master, TIOCGPTLCK));
  CHECK(open(locked.path, O_RDWR | O_NOCTTY) == -1 && errno == EIO);

  CHECK(read(hung[0], &byte, 1) == 0 && read(hung_copy, &byte, 1) == 0);
  CHECK(write(hung[1], &byte, 1) == -1 && errno == EIO);
  CHECK_EQUAL(fcntl(hung[1], F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_WRONLY | O_NONBLOCK);
  CHECK(fcntl(hung_copy, F_SETFL, O_NONBLOCK) == 0 && (fcntl(hung[0], F_GETFL) & O_NONBLOCK) != 0);

  struct stat node;
  CHECK(fstat(slave, &node) == 0);
  CHECK_EQUAL(node.st_uid, 1);
  CHECK_EQUAL(node.st_gid, 5);
  CHECK_EQUAL(node.st_mode & 07777, 0624);
  CHECK_EQUAL(fcntl(several.master, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDWR | O_NONBLOCK);
  CHECK_EQUAL(fcntl(reader, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDONLY | O_NONBLOCK);
  CHECK_EQUAL(fcntl(writer, F_GETFL) & (O_ACCMODE | O_APPEND), O_WRONLY | O_APPEND);
  termios modes;
  CHECK(tcgetattr(writer, &modes) == 0);
  CHECK_EQUAL(modes.c_cc[VMIN], 7);
  CHECK_EQUAL(modes.c_cc[VTIME], 3);
  CHECK_EQUAL(modes.c_lflag & ICANON, 0);
  CHECK_EQUAL(speed_of(slave), 12345);
  CHECK(fcntl(several.master, F_SETFL, 0) == 0);
  exchange(several.master, slave);

  CHECK(flag(packets.master, TIOCGPKT) && !flag(several.master, TIOCGPKT));
  char packet[16] = {};
  CHECK(write(packet_slave, "data", 4) == 4);
  ssize_t got = 0;
  do {  // news of the modes' change may come first
    got = read(packets.master, packet, sizeof packet);
  } while (got > 0 && packet[0] != TIOCPKT_DATA);
  CHECK(got == 5 && memcmp(packet + 1, "data", 4) == 0);

  CHECK(flag(exclusive_slave, TIOCGEXCL) && !flag(slave, TIOCGEXCL) && !flag(exclusive.master, TIOCGEXCL));

  CHECK(write(elsewhere.master, "1234567", 7) == 7);
  char text[16] = {};
  CHECK(read(elsewhere.master, text, sizeof text) == 7 && memcmp(text, "1234567", 7) == 0);
  probe::expect_child_passed(child);
  CHECK(is_hung_up(elsewhere.master));
  return probe::passed();
}
