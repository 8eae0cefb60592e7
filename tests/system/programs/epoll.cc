// epoll: targets with their data, triggers, one-shots that have fired, epolls within epolls, targets that are open
// under other numbers by now, or in other processes only, and epolls shared by fork.
// FAIL_RESTORE
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>

#include "probe.h"

struct BusyPoll {  // struct epoll_params of linux/eventpoll.h
  uint32_t microseconds;
  uint16_t budget;
  uint8_t preferred, zero;
};

static void add(int epoll, int fd, uint32_t events, uint64_t data) {
  epoll_event event = {};
  event.events = events, event.data.u64 = data;
  CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
}

static epoll_event next(int epoll) {
  epoll_event event;
  CHECK(epoll_wait(epoll, &event, 1, 10'000) == 1);
  return event;
}

static void expect_silence(int epoll) {
  epoll_event event;
  CHECK_EQUAL(epoll_wait(epoll, &event, 1, 0), 0);
}

static void bump(int fd) {
  const uint64_t one = 1;
  CHECK(write(fd, &one, sizeof one) == sizeof one);
}

static void drain(int fd) {
  uint64_t value;
  CHECK(read(fd, &value, sizeof value) == sizeof value);
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  // Level, edge, and a nested epoll.
  const int inner = epoll_create1(EPOLL_CLOEXEC), outer = epoll_create1(0);
  const int level = eventfd(0, 0), edge = eventfd(0, 0);
  add(inner, level, EPOLLIN, 0x1122334455667788);
  add(inner, edge, EPOLLIN | EPOLLET, 2);
  add(outer, inner, EPOLLIN, 3);

  // One-shots: armed, fired, and fired ones of which nothing can be read at the moment.
  const int shots = epoll_create1(0);
  const int armed = eventfd(0, 0), fired = eventfd(0, 0);
  int quiet[2];
  CHECK(pipe(quiet) == 0);
  add(shots, armed, EPOLLIN | EPOLLONESHOT, 4);
  add(shots, fired, EPOLLIN | EPOLLONESHOT, 5);
  bump(fired);
  CHECK_EQUAL(next(shots).data.u64, 5);
  add(shots, quiet[1], EPOLLOUT | EPOLLONESHOT, 6);
  CHECK_EQUAL(next(shots).data.u64, 6);

  // Both ends of a pipe; something that is ready all the time.
  const int pipes = epoll_create1(0);
  int ends[2];
  CHECK(pipe(ends) == 0 && write(ends[1], "x", 1) == 1);
  add(pipes, ends[0], EPOLLIN | EPOLLRDHUP, 7);
  add(pipes, ends[1], EPOLLOUT, 8);

  // Numbers that were closed, given away, and used twice since.
  const int moved = epoll_create1(0);
  const int wanderer = eventfd(0, 0), elsewhere = dup(wanderer), twin = dup2(wanderer, 600);
  add(moved, wanderer, EPOLLIN, 9);
  add(moved, twin, EPOLLIN, 10);
  CHECK(dup2(level, wanderer) == wanderer);  // now another file has the number
  CHECK(close(twin) == 0);
  // The epoll has the number that its target had.
  const int original = eventfd(0, 0), kept = dup(original), crossed = epoll_create1(0);
  add(crossed, original, EPOLLIN, 11);
  CHECK(dup2(crossed, original) == original && close(crossed) == 0);

  // Open in the child only, by now, and waited for by both.
  const int shared = epoll_create1(0), childs = eventfd(0, 0), number_for_childs = 700, far = eventfd(0, 0);
  CHECK(dup2(childs, number_for_childs) == number_for_childs && close(childs) == 0);
  add(shared, number_for_childs, EPOLLIN, 12);
  add(shared, far, EPOLLIN, 13);
  const pid_t child = fork();
  if (child == 0) {
    CHECK(close(far) == 0);
    probe::wait_for_go();
    bump(number_for_childs);
    epoll_event event = next(shared);
    CHECK_EQUAL(event.data.u64, 12);
    // The number counts: this is how it is known.
    CHECK(epoll_ctl(shared, EPOLL_CTL_MOD, number_for_childs, &event) == 0);
    for (bool seen = false; !seen;) {  // what only the parent has
      epoll_event more[4];
      const int count = epoll_wait(shared, more, 4, 10'000);
      CHECK(count > 0);
      for (int i = 0; i < count; ++i) seen = seen || more[i].data.u64 == 13;
    }
    _exit(0);
  }
  CHECK(close(number_for_childs) == 0);
  BusyPoll busy = {50, 8, 1, 0};
  const bool has_busy_poll = ioctl(inner, _IOW(0x8A, 1, BusyPoll), &busy) == 0;  // EPIOCSPARAMS, Linux 6.9
  probe::ready();
  probe::wait_for_go();

  busy = {};
  CHECK(!has_busy_poll || (ioctl(inner, _IOR(0x8A, 2, BusyPoll), &busy) == 0 && busy.microseconds == 50 &&
                           busy.budget == 8 && busy.preferred == 1));
  expect_silence(outer);
  bump(level);
  CHECK_EQUAL(next(outer).data.u64, 3);
  CHECK_EQUAL(next(inner).data.u64, 0x1122334455667788);
  CHECK_EQUAL(next(inner).data.u64, 0x1122334455667788);
  drain(level);
  expect_silence(inner);
  bump(edge);
  CHECK_EQUAL(next(inner).data.u64, 2);
  expect_silence(inner);

  bump(fired);
  expect_silence(shots);
  bump(armed);
  CHECK_EQUAL(next(shots).data.u64, 4);
  expect_silence(shots);
  CHECK(close(quiet[0]) == 0);  // an error for the writer, which nobody is to hear of
  expect_silence(shots);
  epoll_event again = {};
  again.events = EPOLLIN | EPOLLONESHOT, again.data.u64 = 14;
  CHECK(epoll_ctl(shots, EPOLL_CTL_MOD, fired, &again) == 0);
  CHECK_EQUAL(next(shots).data.u64, 14);

  epoll_event both[3];
  CHECK_EQUAL(epoll_wait(pipes, both, 3, 0), 2);
  CHECK_EQUAL(both[0].data.u64 + both[1].data.u64, 15);
  char byte;
  CHECK(read(ends[0], &byte, 1) == 1);
  CHECK_EQUAL(next(pipes).data.u64, 8);

  expect_silence(moved);
  bump(elsewhere);
  CHECK_EQUAL(epoll_wait(moved, both, 3, 0), 2);
  CHECK_EQUAL(both[0].data.u64 + both[1].data.u64, 19);
  CHECK(epoll_ctl(moved, EPOLL_CTL_DEL, wanderer, nullptr) < 0 && errno == ENOENT);  // that number is `level` now
  CHECK(dup2(elsewhere, wanderer) == wanderer);
  CHECK(epoll_ctl(moved, EPOLL_CTL_DEL, wanderer, nullptr) == 0);
  CHECK(dup2(elsewhere, twin) == twin);
  CHECK(epoll_ctl(moved, EPOLL_CTL_DEL, twin, nullptr) == 0);
  expect_silence(moved);
  bump(kept);
  CHECK_EQUAL(next(original).data.u64, 11);

  CHECK_EQUAL(next(shared).data.u64, 12);  // the child's, which we do not have
  bump(far);
  probe::expect_child_passed(child);
  return probe::passed();
}
