// Dead children that nobody has waited for yet, with exit codes and signals; a dead group leader among them.
#include "probe.h"

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  pid_t exited = fork();
  if (exited == 0) _exit(37);
  pid_t killed = fork();
  if (killed == 0) {
    raise(SIGTERM);
    _exit(1);
  }
  pid_t leader = fork();
  if (leader == 0) {
    setpgid(0, 0);
    _exit(3);
  }
  setpgid(leader, leader);
  pid_t member = fork();
  if (member == 0) {
    setpgid(0, leader);
    const pid_t group = getpgrp();
    probe::wait_for_go();
    CHECK_EQUAL(getpgrp(), group);
    _exit(0);
  }
  siginfo_t info;
  for (const pid_t pid : (pid_t[]){exited, killed, leader}) CHECK(waitid(P_PID, pid, &info, WEXITED | WNOWAIT) == 0);
  usleep(20'000);
  probe::ready();
  probe::wait_for_go();
  int status = 0;
  CHECK(waitpid(exited, &status, 0) == exited);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 37);
  CHECK(waitpid(killed, &status, 0) == killed);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
  CHECK_EQUAL(getpgid(member), leader);
  CHECK(waitpid(leader, &status, 0) == leader);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 3);
  probe::expect_child_passed(member);
  return probe::passed();
}
