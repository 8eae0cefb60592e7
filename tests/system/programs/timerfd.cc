// timerfd: all clocks, one-shots, intervals, unread expirations, timers set to a time of day.
// ROOT: has timers that wake the machine up
#include <sys/timerfd.h>

#include "probe.h"

constexpr long hour = 3600;

static int make(int clock, int flags, long value_ns, long interval_ns, long value_s = 0) {
  const int fd = timerfd_create(clock, TFD_NONBLOCK);
  CHECK(fd >= 0);
  const itimerspec when = {{interval_ns / 1'000'000'000, interval_ns % 1'000'000'000},
                           {value_s + value_ns / 1'000'000'000, value_ns % 1'000'000'000}};
  CHECK(timerfd_settime(fd, flags, &when, nullptr) == 0);
  return fd;
}

static uint64_t ticks(int fd) {
  uint64_t value = 0;
  CHECK(read(fd, &value, sizeof value) == sizeof value);
  return value;
}

static long remaining(int fd) {
  itimerspec now;
  CHECK(timerfd_gettime(fd, &now) == 0);
  return now.it_value.tv_sec;
}

/// "settime flags" of fdinfo.
static int settime_flags(int fd) {
  char path[64], line[256];
  snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
  FILE* file = fopen(path, "r");
  int flags = -1;
  while (file && fgets(line, sizeof line, file)) sscanf(line, "settime flags: %o", (unsigned*)&flags);
  if (file) fclose(file);
  return flags;
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  const int clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM};
  int far[5];
  for (int i = 0; i < 5; ++i) far[i] = make(clocks[i], 0, 0, hour * 1'000'000'000, hour);
  const int unarmed = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
  const int fired = make(CLOCK_MONOTONIC, 0, 1'000'000, 0);
  const int missed = make(CLOCK_MONOTONIC, 0, 1'000'000, 10'000'000);  // nobody reads it: the kernel counts
  // They fire wherever the program is then, but not while the driver still compares.
  constexpr long later_s = 12;
  const int pending = make(CLOCK_MONOTONIC, 0, 1, 0, later_s);
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  const int day = make(CLOCK_REALTIME, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, 0, 0, now.tv_sec + hour);
  const int soon = make(CLOCK_REALTIME, TFD_TIMER_ABSTIME, 0, 0, now.tv_sec + later_s);
  const timespec pause = {0, 55'000'000};
  nanosleep(&pause, nullptr);
  probe::ready();
  probe::wait_for_go();

  for (const int fd : far) {
    CHECK(remaining(fd) > hour - 300 && remaining(fd) < hour);
    uint64_t value;
    CHECK(read(fd, &value, sizeof value) < 0 && errno == EAGAIN);
    itimerspec state;
    CHECK(timerfd_gettime(fd, &state) == 0);
    CHECK_EQUAL(state.it_interval.tv_sec, hour);
  }
  CHECK_EQUAL(remaining(unarmed), 0);
  CHECK_EQUAL(fcntl(unarmed, F_GETFD), FD_CLOEXEC);
  CHECK_EQUAL(fcntl(unarmed, F_GETFL) & O_NONBLOCK, 0);
  CHECK_EQUAL(fcntl(fired, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
  CHECK_EQUAL(ticks(fired), 1);
  CHECK(ticks(missed) >= 5);
  CHECK_EQUAL(settime_flags(day), TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET);
  timespec later;
  clock_gettime(CLOCK_REALTIME, &later);
  CHECK(labs(remaining(day) - (now.tv_sec + hour - later.tv_sec)) <= 1);  // at its time of day
  const int late[] = {pending, soon};
  for (const int fd : late) {
    fcntl(fd, F_SETFL, 0);
    CHECK_EQUAL(ticks(fd), 1);
  }
  return probe::passed();
}
