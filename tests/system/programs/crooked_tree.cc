// Trees that forking everybody from his parent does not lead to: a daemon that came to a subreaper of another session,
// sessions three deep whose leaders are all dead, a dead leader whose pid its group holds, two groups led crosswise.
#include <sys/prctl.h>

#include "probe.h"

namespace {

constexpr int steady = 8;  // processes that are there in the end, the root apart

struct Board {
  volatile int settled;
  volatile pid_t daemon, held, first, second;
  volatile bool first_leads, second_leads, helper_joined, first_moved, second_moved;
};
Board* board = nullptr;

void until(const volatile auto& condition) {
  while (!condition) usleep(1000);
}

void check_steady() {
  const pid_t parent = getppid(), group = getpgrp(), session = getsid(0);
  __atomic_add_fetch(&board->settled, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  CHECK_EQUAL(getppid(), parent);
  CHECK_EQUAL(getpgrp(), group);
  CHECK_EQUAL(getsid(0), session);
}

using probe::start;

void await_parent(pid_t parent) {
  while (getppid() != parent) usleep(1000);
}

/// Its session's leader is dead, its parent a manager with a session of its own.
void manager() {
  CHECK(setsid() == getpid() && prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
  const pid_t self = getpid();
  const pid_t middle = start([&] {
    CHECK(setsid() == getpid());
    start([&] {
      await_parent(self);
      CHECK(getsid(0) != getsid(self));
      check_steady();
    });
  });
  probe::expect_child_passed(middle);
  check_steady();
  int status = 0;
  CHECK(wait(&status) > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/// Whoever is at `depth` lives in the session of a dead leader who was born in the session above.
void nested(int depth) {
  CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
  const pid_t self = getpid();
  if (depth < 3) {
    const pid_t leader = start([&] {
      CHECK(setsid() == getpid());
      start([&] {
        await_parent(self);
        nested(depth + 1);
      });
    });
    probe::expect_child_passed(leader);
  }
  check_steady();
  int status = 0;
  while (wait(&status) > 0) CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/// The group of a leader that is dead, waited for, and yet in the way of whoever wants its pid.
void held_group() {
  int status = 0;
  volatile pid_t& leader = board->held;
  leader = start([] {
    CHECK(setpgid(0, 0) == 0);
    pause();
  });
  while (getpgid(leader) != leader) usleep(1000);
  const pid_t doomed = leader;
  start([&] {
    CHECK(setpgid(0, doomed) == 0);
    leader = 0;
    while (kill(doomed, 0) == 0) usleep(1000);
    check_steady();
  });
  while (leader != 0) usleep(1000);
  CHECK(kill(doomed, SIGKILL) == 0 && waitpid(doomed, &status, 0) == doomed);
}

/// Each of two siblings leads the group that the other is in. A third held one group while they changed places.
void crosswise() {
  const auto exchange = [](volatile bool& leads, const volatile bool& turn, const volatile pid_t& other,
                           volatile bool& moved) {
    return start([&] {
      CHECK(setpgid(0, 0) == 0);
      leads = true;
      until(turn);
      CHECK(setpgid(0, other) == 0);
      moved = true;
      check_steady();
    });
  };
  board->first = exchange(board->first_leads, board->helper_joined, board->second, board->first_moved);
  board->second = exchange(board->second_leads, board->first_moved, board->first, board->second_moved);
  until(board->first_leads);
  until(board->second_leads);
  const pid_t helper = start([] {
    CHECK(setpgid(0, board->first) == 0);
    board->helper_joined = true;
    until(board->second_moved);
  });
  probe::expect_child_passed(helper);
  CHECK_EQUAL(getpgid(board->first), board->second);
  CHECK_EQUAL(getpgid(board->second), board->first);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  board = probe::shared_memory<Board>();
  start(manager);
  start([] { nested(1); });
  held_group();
  crosswise();
  probe::await(&board->settled, steady);
  probe::ready();
  probe::wait_for_go();
  CHECK_EQUAL(getpgid(board->first), board->second);
  CHECK_EQUAL(getpgid(board->second), board->first);
  int status = 0;
  while (wait(&status) > 0) CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  return probe::passed();
}
