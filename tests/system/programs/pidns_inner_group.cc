// Groups whose ids keep a pid namespace from ending (kernel/pid_namespace.c, zap_pid_ns_processes): an init in the
// group of a process of its own namespace, one in a group there whose leader is dead, and a process outside that is in
// a group led from inside. Who kills such a tree, or gives up building it, has to see to it that they leave these
// groups first.
// FAIL_RESTORE
// ROOT: makes pid namespaces
#include <sched.h>

#include "probe.h"

namespace {

struct Board {
  volatile int settled;
};
Board* board = nullptr;
int owned[2];  // a pipe: its owner tells the group of the third namespace to who is outside

using probe::start;

void reap_all() {
  int status = 0;
  while (wait(&status) > 0) CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/// Is in the group until it has been looked at.
void stay_in(pid_t group) {
  CHECK_EQUAL(getpgrp(), group);
  __atomic_add_fetch(&board->settled, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  CHECK_EQUAL(getpgrp(), group);
  if (group != getpid()) CHECK(setpgid(0, 0) == 0);
}

pid_t start_leader() {
  const pid_t leader = start([] {
    CHECK(setpgid(0, 0) == 0);
    stay_in(getpid());
  });
  while (getpgid(leader) != leader) usleep(1000);
  return leader;
}

void init_in_led_group() {
  CHECK_EQUAL(getpid(), 1);
  const pid_t leader = start_leader();
  CHECK(setpgid(0, leader) == 0);
  stay_in(leader);
  reap_all();
}

void init_in_left_group() {
  CHECK_EQUAL(getpid(), 1);
  int hold[2];
  CHECK(pipe(hold) == 0);
  const pid_t leader = start([&] {
    char byte;
    close(hold[1]);
    CHECK(read(hold[0], &byte, 1) == 0);
  });
  CHECK(setpgid(leader, leader) == 0 && setpgid(0, leader) == 0);
  close(hold[0]), close(hold[1]);
  probe::expect_child_passed(leader);
  stay_in(leader);
}

void init_of_the_third() {
  CHECK_EQUAL(getpid(), 1);
  const pid_t leader = start_leader();
  CHECK(fcntl(owned[0], F_SETOWN, leader) == 0);
  stay_in(0);
  reap_all();
}

void outsider() {
  pid_t group = 0;
  while ((group = fcntl(owned[0], F_GETOWN)) == 0) usleep(1000);
  CHECK(setpgid(0, group) == 0);
  stay_in(group);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  board = probe::shared_memory<Board>();
  CHECK(pipe(owned) == 0);
  start(init_in_led_group, CLONE_NEWPID);
  probe::await(&board->settled, 2);
  start(init_in_left_group, CLONE_NEWPID);
  start(outsider);
  start(init_of_the_third, CLONE_NEWPID);
  probe::await(&board->settled, 6);
  probe::ready();
  probe::wait_for_go();
  reap_all();
  return probe::passed();
}
