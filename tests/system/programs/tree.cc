// A tree of processes with their parents, groups and sessions.
// FAIL_RESTORE
// FILTERS
#include "probe.h"

namespace {

struct Ids {
  pid_t pid, parent, group, session;
};

struct Board {
  volatile int started;
};

Ids own_ids() { return {getpid(), getppid(), getpgrp(), getsid(0)}; }

/// Sets itself up as told, starts children below, checks after the cycle.
void run(Board* board, int depth) {
  if (depth == 1) CHECK(setpgid(0, 0) == 0);
  if (depth == 2) CHECK(setsid() >= 0);
  pid_t children[2] = {};
  if (depth < 3) {
    for (auto& child : children) {
      child = fork();
      CHECK(child >= 0);
      if (child == 0) {
        run(board, depth + 1);
        _exit(0);
      }
    }
  }
  const Ids before = own_ids();
  __atomic_add_fetch(&board->started, 1, __ATOMIC_RELEASE);
  if (depth == 0) {
    probe::await(&board->started, 1 + 2 + 4 + 8);
    probe::ready();
  }
  probe::wait_for_go();
  const Ids after = own_ids();
  CHECK_EQUAL(after.pid, before.pid);
  if (depth > 0) CHECK_EQUAL(after.parent, before.parent);
  CHECK_EQUAL(after.group, before.group);
  CHECK_EQUAL(after.session, before.session);
  if (depth < 3) {
    for (const auto child : children) probe::expect_child_passed(child);
  }
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  run(probe::shared_memory<Board>(), 0);
  return probe::passed();
}
