// Urgent data of TCP connections (MSG_OOB) that waits to be received: before, at and behind the reading position, read
// out of band or not, in line (SO_OOBINLINE) or not, with bytes around it and an end behind it. Receiving stops where
// it did, nobody is signalled anew, and a program that looks ahead (SO_PEEK_OFF) does so from where it was.
//
// DUMP: --tcp-established
// RESTORE: --tcp-established
// FAIL_RESTORE
#include <sys/epoll.h>

#include "inet.h"

constexpr int families[] = {AF_INET, AF_INET6};
constexpr uint8_t earlier_byte = '?';

volatile int signals = 0;
void on_urgent(int) { signals = signals + 1; }

struct Plan {
  size_t before = 0, behind = 0;  // bytes around the urgent one
  bool to_mark = false;           // what is before it has been read
  bool was_read = false;          // out of band
  bool in_line = false;           // when it came
  bool later_in_line = false;
  bool ends = false;     // a FIN comes behind all
  bool earlier = false;  // there was another urgent byte right before it
};
constexpr Plan plans[] = {
    {.before = 1000, .behind = 500},
    {.before = 1000, .behind = 500, .was_read = true},
    {.before = 1000, .behind = 500, .in_line = true},
    {.before = 1000, .behind = 500, .was_read = true, .later_in_line = true},
    {.before = 1000, .behind = 500, .to_mark = true},
    {.before = 1000, .behind = 500, .to_mark = true, .was_read = true},
    {.before = 1000, .behind = 500, .to_mark = true, .in_line = true},
    {.before = 1000, .behind = 500, .to_mark = true, .was_read = true, .later_in_line = true},
    {.before = 0, .behind = 0},
    {.before = 0, .behind = 0, .was_read = true},
    {.before = 0, .behind = 0, .in_line = true},
    {.before = 0, .behind = 1},
    {.before = 1, .behind = 0, .was_read = true},
    {.before = 50000, .behind = 20000},
    {.before = 50000, .behind = 20000, .was_read = true, .ends = true},
    {.before = 10, .behind = 0, .ends = true},
    {.before = 10, .behind = 10, .to_mark = true, .in_line = true, .ends = true},
    {.before = 10, .behind = 10, .earlier = true},
};

struct Received {
  Plan plan;
  inet::Pair pair;
  int epoll = -1;

  void begin(int listener, const Plan& wanted) {
    plan = wanted;
    pair = inet::connected(listener);
    CHECK(fcntl(pair.server, F_SETOWN, getpid()) == 0);
    epoll = epoll_create1(0);
    epoll_event event = {EPOLLPRI, {.fd = pair.server}};
    CHECK(epoll >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, pair.server, &event) == 0);
    if (plan.in_line) inet::set(pair.server, SOL_SOCKET, SO_OOBINLINE, 1);
    inet::write_pattern(pair.client, 0, plan.before, 1);
    if (plan.earlier) inet::send_urgent(pair.client, earlier_byte);
    inet::send_urgent(pair.client);
    inet::write_pattern(pair.client, plan.before, plan.behind, 1);
    if (plan.ends) CHECK(shutdown(pair.client, SHUT_WR) == 0);
    inet::await_acknowledged(pair.client);
    if (plan.to_mark) inet::read_pattern(pair.server, 0, plan.before, 1);
    if (plan.was_read) CHECK_EQUAL(inet::out_of_band(pair.server), inet::urgent_byte);
    if (plan.later_in_line) inet::set(pair.server, SOL_SOCKET, SO_OOBINLINE, 1);
    look();
  }

  bool is_in_line() const { return plan.in_line || plan.later_in_line; }
  size_t ahead() const { return (plan.to_mark ? 0 : plan.before) + (plan.earlier ? 1 : 0); }

  /// Changes nothing.
  void look() const {
    const size_t waiting = is_in_line() ? ahead() + 1 + plan.behind : ahead();
    CHECK_EQUAL(inet::waiting_in(pair.server), waiting);
    CHECK_EQUAL(inet::is_at_mark(pair.server), ahead() == 0);
    CHECK_EQUAL(inet::is_exceptional(pair.server), !plan.was_read);
    epoll_event event = {};
    CHECK_EQUAL(epoll_wait(epoll, &event, 1, 0), plan.was_read ? 0 : 1);
    CHECK_EQUAL(inet::look_out_of_band(pair.server), plan.was_read || is_in_line() ? -EINVAL : inet::urgent_byte);
  }

  void finish() const {
    look();
    if (ahead() != 0) read_to_mark();
    CHECK(inet::is_at_mark(pair.server));
    CHECK_EQUAL(inet::is_exceptional(pair.server), !plan.was_read);
    if (is_in_line()) {
      inet::expect_byte(pair.server, inet::urgent_byte);
    } else if (!plan.was_read) {
      CHECK_EQUAL(inet::out_of_band(pair.server), inet::urgent_byte);
      CHECK(!inet::is_exceptional(pair.server) && inet::is_at_mark(pair.server));
    }
    inet::read_pattern(pair.server, plan.before, plan.behind, 1);
    if (plan.ends) return inet::expect_end(pair.server);
    inet::set(pair.server, SOL_SOCKET, SO_OOBINLINE, 0);
    inet::expect_alive(pair);
    CHECK(!inet::is_at_mark(pair.server));
    const int before = signals;
    inet::send_urgent(pair.client, 'x');
    inet::await_acknowledged(pair.client);
    CHECK_EQUAL(inet::out_of_band(pair.server), 'x');
    CHECK_EQUAL(signals, before + 1);
    inet::expect_alive(pair);
  }

  /// However much is asked for.
  void read_to_mark() const {
    static uint8_t block[1 << 17];
    const ssize_t got = recv(pair.server, block, sizeof block, MSG_DONTWAIT);
    CHECK_EQUAL(got, ahead());
    for (size_t i = 0; i < plan.before; ++i) CHECK_EQUAL(block[i], inet::pattern(i, 1));
    if (plan.earlier) CHECK_EQUAL(block[plan.before], earlier_byte);
  }
};

/// One that was passed without a look is gone.
struct Passed {
  inet::Pair pair;

  void begin(int listener) {
    pair = inet::connected(listener);
    inet::send_urgent(pair.client);
    inet::write_pattern(pair.client, 0, 500, 2);
    inet::await_acknowledged(pair.client);
    inet::read_pattern(pair.server, 0, 100, 2);
  }
  void finish() const {
    CHECK(!inet::is_at_mark(pair.server) && !inet::is_exceptional(pair.server));
    CHECK_EQUAL(inet::look_out_of_band(pair.server), -EINVAL);
    inet::read_pattern(pair.server, 100, 400, 2);
    inet::expect_alive(pair);
  }
};

struct Peeking {
  inet::Pair pair;

  void begin(int listener) {
    pair = inet::connected(listener);
    if (setsockopt_peek(0) != 0) return;  // Linux 6.9
    inet::write_pattern(pair.client, 0, 100, 3);
    inet::await_acknowledged(pair.client);
    peek(0, 30);
  }
  int setsockopt_peek(int offset) const {
    return setsockopt(pair.server, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset);
  }
  void peek(size_t from, size_t count) const {
    uint8_t block[100];
    CHECK_EQUAL(recv(pair.server, block, count, MSG_PEEK), count);
    for (size_t i = 0; i < count; ++i) CHECK_EQUAL(block[i], inet::pattern(from + i, 3));
  }
  void finish() const {
    if (inet::waiting_in(pair.server) == 0) return;
    peek(30, 70);
    inet::read_pattern(pair.server, 0, 100, 3);
    inet::expect_alive(pair);
  }
};

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  CHECK(signal(SIGURG, on_urgent) != SIG_ERR);
  static Received received[2][sizeof plans / sizeof plans[0]];
  Passed passed[2];
  Peeking peeking[2];
  int sent = 0;
  for (int i = 0; i < 2; ++i) {
    const int listener = inet::listening(families[i]);
    for (size_t at = 0; at < sizeof plans / sizeof plans[0]; ++at) {
      received[i][at].begin(listener, plans[at]);
      sent += plans[at].earlier ? 2 : 1;
    }
    passed[i].begin(listener);
    peeking[i].begin(listener);
  }
  CHECK_EQUAL(signals, sent);

  probe::ready();
  probe::wait_for_go();

  CHECK_EQUAL(signals, sent);
  for (int i = 0; i < 2; ++i) {
    for (const auto& one : received[i]) one.finish();
    passed[i].finish();
    peeking[i].finish();
  }
  return probe::passed();
}
