// eventfd: counters, semaphore mode, flags, sharing through fork and dup.
#include <sys/eventfd.h>

#include "probe.h"

static uint64_t take(int fd) {
  uint64_t value = 0;
  CHECK(read(fd, &value, sizeof value) == sizeof value);
  return value;
}

static void expect_empty(int fd) {
  uint64_t value;
  CHECK(read(fd, &value, sizeof value) < 0 && errno == EAGAIN);
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  const uint64_t highest = ~uint64_t{0} - 1;
  const int plain = eventfd(7, EFD_NONBLOCK), semaphore = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK),
            full = eventfd(0, EFD_NONBLOCK), empty = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), blocking = eventfd(0, 0),
            shared = eventfd(0, 0);
  CHECK(plain >= 0 && semaphore >= 0 && full >= 0 && empty >= 0 && blocking >= 0 && shared >= 0);
  CHECK(write(full, &highest, sizeof highest) == sizeof highest);
  const int twin = dup(plain);
  const pid_t child = fork();
  if (child == 0) {
    CHECK_EQUAL(take(blocking), 5);  // asleep during the dump
    const uint64_t answer = 11;
    CHECK(write(shared, &answer, sizeof answer) == sizeof answer);
    _exit(0);
  }
  probe::ready();
  probe::wait_for_go();

  CHECK_EQUAL(fcntl(plain, F_GETFL) & (O_NONBLOCK | O_ACCMODE), O_NONBLOCK | O_RDWR);
  CHECK_EQUAL(fcntl(blocking, F_GETFL) & O_NONBLOCK, 0);
  CHECK_EQUAL(fcntl(empty, F_GETFD), FD_CLOEXEC);
  const uint64_t one = 1, five = 5;
  CHECK(write(twin, &one, sizeof one) == sizeof one);
  CHECK_EQUAL(take(plain), 8);
  expect_empty(twin);
  for (int i = 0; i < 3; ++i) CHECK_EQUAL(take(semaphore), 1);
  expect_empty(semaphore);
  CHECK(write(full, &one, sizeof one) < 0 && errno == EAGAIN);
  CHECK(take(full) == highest);
  expect_empty(empty);
  CHECK(write(blocking, &five, sizeof five) == sizeof five);
  CHECK_EQUAL(take(shared), 11);
  probe::expect_child_passed(child);
  return probe::passed();
}
