// The stack of a child that has called deeper than its parent ever did: one mapping, which goes on growing.
// LAZY
#include "probe.h"

/// Calls itself until so many bytes of stack have been written to; returns what it finds there on its way back.
__attribute__((noinline)) long deep(long bytes) {
  volatile char room[4096];
  for (size_t at = 0; at < sizeof room; at += 64) room[at] = static_cast<char>(bytes >> 12);
  const long below = bytes <= 0 ? 0 : deep(bytes - static_cast<long>(sizeof room));
  for (size_t at = 0; at < sizeof room; at += 64) CHECK(room[at] == static_cast<char>(bytes >> 12));
  return below + 1;
}

struct Board {
  int settled;
};

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  auto* board = probe::shared_memory<Board>();
  CHECK(deep(64 << 10) == 17);  // what both have in common
  const pid_t child = fork();
  if (child == 0) {
    CHECK(deep(600 << 10) == 151);
    __atomic_store_n(&board->settled, 1, __ATOMIC_RELEASE);
    probe::wait_for_go();
    CHECK(deep(3 << 20) == 769);
    _exit(0);
  }
  probe::await(&board->settled, 1);
  probe::ready();
  probe::wait_for_go();
  probe::expect_child_passed(child);
  CHECK(deep(2 << 20) == 513);
  return probe::passed();
}
