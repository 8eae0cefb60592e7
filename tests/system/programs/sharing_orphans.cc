// What processes share that a common ancestor has left them, which is gone, or has none of it any more: orphans of one
// parent, one of which leads a session, and a grandparent and a grandchild with a parent between that has unshared, and
// shares what it has since then with another child.
// FAIL_RESTORE
#include <sys/prctl.h>

#include "common.h"

namespace {

struct Board {
  volatile int settled, step;
  volatile pid_t leader, member, between, grandchild;
  volatile int fd, opened, own;
};
Board* board;
char stacks[5][64 << 10];

void wait_for_step(int step) {
  while (board->step < step) usleep(1000);
}

int leader(void*) {
  while (getppid() == board->between) usleep(1000);
  CHECK(setsid() == getpid());
  __atomic_add_fetch(&board->settled, 1, __ATOMIC_SEQ_CST);
  wait_for_step(1);
  board->fd = common::change_all();
  board->step = 2;
  return 0;
}

int member(void*) {
  const pid_t session = getsid(0);
  __atomic_add_fetch(&board->settled, 1, __ATOMIC_SEQ_CST);
  wait_for_step(2);
  CHECK_EQUAL(getsid(0), session);
  common::expect_all_changed(board->fd);
  return 0;
}

/// Both are children of one that ends.
void leave_orphans() {
  constexpr int shared = common::all_kinds | SIGCHLD;
  const pid_t parent = probe::start([] {
    board->between = getpid();
    board->leader = clone(leader, stacks[0] + sizeof stacks[0], shared, nullptr);
    board->member = clone(member, stacks[1] + sizeof stacks[1], shared, nullptr);
    CHECK(board->leader > 0 && board->member > 0);
    _exit(0);
  });
  probe::expect_child_passed(parent);
}

// ---- a working directory and a descriptor table with somebody between

int grandchild(void*) {
  __atomic_add_fetch(&board->settled, 1, __ATOMIC_SEQ_CST);
  wait_for_step(3);
  common::expect_directory("/etc");
  CHECK(fcntl(board->opened, F_GETFD) >= 0);
  return 0;
}

/// It has what the one between has, and not what is common to those around him.
int companion(void*) {
  __atomic_add_fetch(&board->settled, 1, __ATOMIC_SEQ_CST);
  wait_for_step(3);
  common::expect_directory("/tmp");
  CHECK(fcntl(board->opened, F_GETFD) < 0 && fcntl(board->own, F_GETFD) >= 0);
  CHECK(close(board->own) == 0);
  return 0;
}

int between(void*) {
  board->grandchild = clone(grandchild, stacks[3] + sizeof stacks[3], CLONE_FS | CLONE_FILES | SIGCHLD, nullptr);
  CHECK(board->grandchild > 0);
  CHECK(unshare(CLONE_FS | CLONE_FILES) == 0 && chdir("/tmp") == 0);
  board->own = open("/dev/null", O_RDONLY);
  CHECK(board->own >= 0);
  const pid_t other = clone(companion, stacks[4] + sizeof stacks[4], CLONE_FS | CLONE_FILES | SIGCHLD, nullptr);
  CHECK(other > 0);
  __atomic_add_fetch(&board->settled, 1, __ATOMIC_SEQ_CST);
  wait_for_step(3);
  common::expect_directory("/tmp");
  CHECK(fcntl(board->opened, F_GETFD) < 0);
  probe::expect_child_passed(board->grandchild);
  probe::expect_child_passed(other);
  CHECK(fcntl(board->own, F_GETFD) < 0);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  board = probe::shared_memory<Board>();
  CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
  leave_orphans();
  const pid_t child = clone(between, stacks[2] + sizeof stacks[2], CLONE_FS | CLONE_FILES | SIGCHLD, nullptr);
  CHECK(child > 0);
  probe::await(&board->settled, 5);
  probe::ready();
  probe::wait_for_go();

  board->step = 1;
  probe::expect_child_passed(board->leader);
  probe::expect_child_passed(board->member);
  CHECK_EQUAL(common::in_memory, 0);
  CHECK(fcntl(board->fd, F_GETFD) < 0);
  CHECK(chdir("/etc") == 0);
  constexpr int high = 200;  // nobody has that number
  board->opened = fcntl(open("/dev/null", O_RDONLY), F_DUPFD, high);
  CHECK(board->opened >= high);
  board->step = 3;
  probe::expect_child_passed(child);
  return probe::passed();
}
