// Leases: for reading and for writing, of root and of another user, with an owner and a signal of its own, and such
// that are being broken. Nobody is told again what he has been told before the dump.
// DUMP: --file-locks
// FAIL_RESTORE
// ROOT: has a process of another user
#include "probe.h"

namespace {

volatile sig_atomic_t signals, last_fd;

void count(int, siginfo_t* info, void*) {
  ++signals;
  last_fd = info->si_fd;
}

int create(const char* name, int flags) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", probe::directory, name);
  const int fd = open(path, O_CREAT | O_WRONLY, 0666);
  CHECK(fd >= 0 && write(fd, "content", 7) == 7 && close(fd) == 0);
  const int leased = open(path, flags);
  CHECK(leased >= 0);
  return leased;
}

void expect_broken(const char* name, int flags) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", probe::directory, name);
  CHECK(open(path, flags | O_NONBLOCK) < 0);
  CHECK_EQUAL(errno, EWOULDBLOCK);
}

void expect_open(const char* name, int flags) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", probe::directory, name);
  const int fd = open(path, flags | O_NONBLOCK);
  CHECK(fd >= 0 && close(fd) == 0);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  umask(0);
  struct sigaction action = {};
  action.sa_sigaction = count, action.sa_flags = SA_SIGINFO;
  CHECK(sigaction(SIGRTMIN + 3, &action, nullptr) == 0 && sigaction(SIGIO, &action, nullptr) == 0);

  const int reading = create("reading", O_RDONLY);
  CHECK(fcntl(reading, F_SETSIG, SIGRTMIN + 3) == 0 && fcntl(reading, F_SETLEASE, F_RDLCK) == 0);
  const int writing = create("writing", O_RDWR);
  CHECK(fcntl(writing, F_SETLEASE, F_WRLCK) == 0);
  const int silent = create("silent", O_RDONLY);  // the lease makes us its owner; it has none any more
  CHECK(fcntl(silent, F_SETLEASE, F_WRLCK) == 0 && fcntl(silent, F_SETOWN, 0) == 0);
  const int opened_up = create("opened-up", O_RDWR), given_up = create("given-up", O_RDONLY);
  CHECK(fcntl(opened_up, F_SETLEASE, F_WRLCK) == 0 && fcntl(given_up, F_SETLEASE, F_RDLCK) == 0);

  int* const other_is_ready = probe::shared_memory<int>();
  const pid_t other = fork();
  if (other == 0) {
    CHECK(setresgid(12345, 12345, 12345) == 0 && setresuid(12345, 12345, 12345) == 0);
    const int own = create("of-another-user", O_RDONLY);
    CHECK(fcntl(own, F_SETLEASE, F_RDLCK) == 0);
    signals = 0;
    *other_is_ready = 1;
    probe::wait_for_go();
    CHECK_EQUAL(fcntl(own, F_GETLEASE), F_RDLCK);
    CHECK_EQUAL(signals, 0);
    expect_broken("of-another-user", O_WRONLY);
    CHECK_EQUAL(signals, 1);
    _exit(0);
  }
  probe::await(other_is_ready, 1);

  // Somebody wants them already, and we have been told so.
  expect_broken("opened-up", O_RDONLY);
  expect_broken("given-up", O_WRONLY);
  CHECK_EQUAL(fcntl(opened_up, F_GETLEASE), F_RDLCK);
  CHECK_EQUAL(fcntl(given_up, F_GETLEASE), F_UNLCK);
  CHECK_EQUAL(signals, 2);

  probe::ready();
  probe::wait_for_go();
  probe::expect_child_passed(other);

  CHECK_EQUAL(signals, 2);
  CHECK_EQUAL(fcntl(reading, F_GETLEASE), F_RDLCK);
  CHECK_EQUAL(fcntl(writing, F_GETLEASE), F_WRLCK);
  CHECK_EQUAL(fcntl(silent, F_GETLEASE), F_WRLCK);
  expect_open("reading", O_RDONLY);
  CHECK_EQUAL(signals, 2);
  expect_broken("reading", O_WRONLY);
  CHECK_EQUAL(signals, 3);
  CHECK_EQUAL(last_fd, reading);
  expect_broken("writing", O_RDONLY);
  CHECK_EQUAL(signals, 4);
  expect_broken("silent", O_RDONLY);
  CHECK_EQUAL(signals, 4);

  // The kernel keeps to a lease that is being broken: as much as is wanted is let go of, and then the file opens.
  CHECK_EQUAL(fcntl(opened_up, F_GETLEASE), F_RDLCK);
  CHECK_EQUAL(fcntl(given_up, F_GETLEASE), F_UNLCK);
  expect_broken("given-up", O_WRONLY);
  CHECK_EQUAL(signals, 4);
  CHECK(fcntl(given_up, F_SETLEASE, F_UNLCK) == 0);
  expect_open("given-up", O_WRONLY);
  CHECK(close(silent) == 0);
  expect_open("silent", O_RDONLY);
  return probe::passed();
}
