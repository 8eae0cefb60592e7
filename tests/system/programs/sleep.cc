// The smallest program: it sleeps, and its memory, pid and parent's view stay the same.
#include "probe.h"

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  const pid_t pid = getpid(), session = getsid(0), group = getpgrp();
  char* heap = static_cast<char*>(malloc(100'000));
  memset(heap, 'x', 100'000);
  probe::ready();
  probe::wait_for_go();
  CHECK_EQUAL(getpid(), pid);
  CHECK_EQUAL(getsid(0), session);
  CHECK_EQUAL(getpgrp(), group);
  for (int i = 0; i < 100'000; ++i) CHECK_EQUAL(heap[i], 'x');
  return probe::passed();
}
