// Dead session leaders, daemons re-parented to init or to a subreaper, and a group whose leader is gone.
#include <sys/prctl.h>

#include "probe.h"

namespace {

struct Board {
  volatile pid_t pids[4];
};

void check_steady() {
  const pid_t parent = getppid(), group = getpgrp(), session = getsid(0);
  probe::wait_for_go();
  CHECK_EQUAL(getppid(), parent);
  CHECK_EQUAL(getpgrp(), group);
  CHECK_EQUAL(getsid(0), session);
  _exit(0);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  auto* board = probe::shared_memory<Board>();
  CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
  // A daemon: its session's leader dies, and it comes to us.
  const pid_t middle = fork();
  if (middle == 0) {
    setsid();
    const pid_t self = getpid();
    for (int i = 0; i < 2; ++i) {
      if (fork() == 0) {
        if (i == 1) setpgid(0, 0);
        while (getppid() == self) usleep(1000);
        board->pids[i] = getpid();
        check_steady();
      }
    }
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(middle, &status, 0) == middle);
  // A group whose leader has been reaped while a member lives.
  const pid_t leader = fork();
  if (leader == 0) {
    setpgid(0, 0);
    pause();
    _exit(0);
  }
  setpgid(leader, leader);
  const pid_t member = fork();
  if (member == 0) {
    CHECK(setpgid(0, leader) == 0);
    board->pids[2] = getpid();
    while (board->pids[3] == 0) usleep(1000);
    check_steady();
  }
  while (board->pids[2] == 0 || board->pids[0] == 0 || board->pids[1] == 0) usleep(1000);
  CHECK(kill(leader, SIGKILL) == 0 && waitpid(leader, &status, 0) == leader);
  board->pids[3] = 1;
  usleep(20'000);
  probe::ready();
  probe::wait_for_go();
  for (int i = 0; i < 3; ++i) {
    CHECK(wait(&status) > 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  return probe::passed();
}
