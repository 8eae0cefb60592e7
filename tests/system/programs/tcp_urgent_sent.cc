// Urgent data of TCP connections (MSG_OOB) that is still under way: sent to a peer who does not hear, alone, among
// other bytes and with an end behind it; kept back for a peer who has no room, and has been told that it comes.
//
// DUMP: --tcp-established
// RESTORE: --tcp-established
// FAIL_RESTORE
// ROOT: filters of sockets count against a limit that all users share (net.core.bpf_jit_limit)
// REQUIRES: [ -e /sys/kernel/btf/vmlinux ] || { echo "nothing tells what is urgent of what was sent"; false; }
#include <linux/sockios.h>

#include "inet.h"

constexpr int families[] = {AF_INET, AF_INET6};
constexpr size_t before = 3000, behind = 2000;

static int unsent_of(int fd) {
  int count = -1;
  CHECK(ioctl(fd, SIOCOUTQNSD, &count) == 0);
  return count;
}
static int unacknowledged_of(int fd) {
  int count = -1;
  CHECK(ioctl(fd, SIOCOUTQ, &count) == 0);
  return count;
}
static void await_urgent(int fd) {
  pollfd asked = {fd, POLLPRI, 0};
  CHECK(poll(&asked, 1, -1) == 1 && (asked.revents & POLLPRI) != 0);
}

/// Sent, and lost.
struct Lost {
  inet::Pair pair;
  bool alone = false, ends = false;

  void begin(int listener, bool is_alone, bool has_end) {
    alone = is_alone, ends = has_end;
    pair = inet::connected(listener);
    inet::make_deaf(pair.server);
    if (!alone) inet::write_pattern(pair.client, 0, before, 1);
    inet::send_urgent(pair.client);
    if (!alone) inet::write_pattern(pair.client, before, behind, 1);
    if (ends) CHECK(shutdown(pair.client, SHUT_WR) == 0);
    CHECK_EQUAL(unacknowledged_of(pair.client), (alone ? 1 : before + 1 + behind) + (ends ? 1 : 0));
    CHECK_EQUAL(inet::look_out_of_band(pair.server), -EINVAL);
  }
  void release() const {
    CHECK_EQUAL(inet::look_out_of_band(pair.server), -EINVAL);
    inet::make_hear(pair.server);
  }
  void finish() const {
    await_urgent(pair.server);
    if (!alone) inet::read_pattern(pair.server, 0, before, 1);
    CHECK(inet::is_at_mark(pair.server));
    CHECK_EQUAL(inet::out_of_band(pair.server), inet::urgent_byte);
    if (!alone) inet::read_pattern(pair.server, before, behind, 1);
    if (ends) return inet::expect_end(pair.server);
    inet::expect_alive(pair);
    CHECK(!inet::is_at_mark(pair.server));
  }
};

/// Not sent yet, and announced.
struct KeptBack {
  inet::Pair pair;
  size_t size = 0;  // what is before it

  void begin(int listener) {
    pair = inet::connected(listener);
    for (; unsent_of(pair.client) == 0; size += 500) {
      inet::write_pattern(pair.client, size, 500, 2);
      while (unacknowledged_of(pair.client) != unsent_of(pair.client)) usleep(500);
    }
    inet::send_urgent(pair.client);
    inet::write_pattern(pair.client, size, behind, 2);
    CHECK(unsent_of(pair.client) > (int)behind);
  }
  void await_announcement() const {
    while (inet::look_out_of_band(pair.server) != -EAGAIN) usleep(500);
    CHECK(!inet::is_exceptional(pair.server));
  }
  void finish() const {
    CHECK_EQUAL(inet::look_out_of_band(pair.server), -EAGAIN);
    CHECK(unsent_of(pair.client) > (int)behind);
    inet::read_pattern(pair.server, 0, size, 2);
    await_urgent(pair.server);
    CHECK(inet::is_at_mark(pair.server));
    CHECK_EQUAL(inet::out_of_band(pair.server), inet::urgent_byte);
    inet::read_pattern(pair.server, size, behind, 2);
    inet::expect_alive(pair);
    CHECK_EQUAL(inet::look_out_of_band(pair.server), -EINVAL);
  }
};

struct Case {
  Lost lost, alone, ended;
  KeptBack kept_back;
};

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  Case cases[2];
  for (int i = 0; i < 2; ++i) {
    auto& one = cases[i];
    const int listener = inet::listening(families[i]);
    one.lost.begin(listener, false, false);
    one.alone.begin(listener, true, false);
    one.ended.begin(listener, false, true);
    const int narrow = inet::listening(families[i]);
    inet::set(narrow, SOL_SOCKET, SO_RCVBUF, 4096);
    one.kept_back.begin(narrow);
  }
  for (const auto& one : cases) one.kept_back.await_announcement();

  probe::ready();
  probe::wait_for_go();

  for (const auto& one : cases) {
    one.lost.release(), one.alone.release(), one.ended.release();
  }
  for (const auto& one : cases) {
    one.kept_back.finish();
    one.lost.finish(), one.alone.finish(), one.ended.finish();
  }
  return probe::passed();
}
