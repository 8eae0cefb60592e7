// What two children of one parent share with each other, and not with the parent: one has created the other with
// CLONE_PARENT.
#include "common.h"

namespace {

struct Board {
  volatile int started, step;
  volatile int fd;
  volatile pid_t sibling;
};
Board* board;
char stacks[2][64 << 10];

void wait_for_step(int step) {
  while (board->step < step) usleep(1000);
}

int younger(void*) {
  __atomic_add_fetch(&board->started, 1, __ATOMIC_SEQ_CST);
  wait_for_step(2);
  common::expect_all_changed(board->fd);
  return 0;
}

int elder() {
  board->sibling = clone(younger, stacks[0] + sizeof stacks[0], CLONE_PARENT | common::all_kinds | SIGCHLD, nullptr);
  CHECK(board->sibling > 0);
  __atomic_add_fetch(&board->started, 1, __ATOMIC_SEQ_CST);
  wait_for_step(1);
  board->fd = common::change_all();
  board->step = 2;
  pause();
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  board = probe::shared_memory<Board>();
  const pid_t first = fork();
  CHECK(first >= 0);
  if (first == 0) _exit(elder());
  while (board->started < 2) usleep(1000);
  probe::ready();
  probe::wait_for_go();

  board->step = 1;
  probe::expect_child_passed(board->sibling);
  CHECK(kill(first, SIGKILL) == 0 && waitpid(first, nullptr, 0) == first);
  CHECK_EQUAL(common::in_memory, 0);
  char here[4096];
  CHECK(getcwd(here, sizeof here) != nullptr && strcmp(here, "/usr") != 0);
  CHECK(fcntl(board->fd, F_GETFD) < 0);
  return probe::passed();
}
