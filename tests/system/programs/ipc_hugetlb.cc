// Segments of huge pages in an IPC namespace of the tree's own: one that is attached, and one that nobody has attached.
// FAIL_RESTORE
// ROOT: makes an IPC namespace
// REQUIRES: n=/proc/sys/vm/nr_hugepages; [ $(cat $n) -gt 31 ] || echo 32 > $n; [ $(cat $n) -gt 31 ] || ! echo too few
#include <sched.h>

#include "shm.h"

namespace {

using shm::attach;
using shm::huge;

/// Whether memory at this address is in huge pages.
bool is_huge(const void* address) {
  char wanted[32], line[512];
  snprintf(wanted, sizeof wanted, "%lx-", reinterpret_cast<unsigned long>(address));
  FILE* const maps = fopen("/proc/self/smaps", "r");
  CHECK(maps != nullptr);
  bool found = false;
  unsigned size = 0;
  while (size == 0 && fgets(line, sizeof line, maps) != nullptr) {
    found = found || strncmp(line, wanted, strlen(wanted)) == 0;
    if (found) sscanf(line, "KernelPageSize: %u kB", &size);
  }
  fclose(maps);
  return size == huge / 1024;
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  CHECK(unshare(CLONE_NEWIPC) == 0);
  const int flags = IPC_CREAT | IPC_EXCL | 0640 | shm::of_huge_pages;
  const int attached = shmget(0x4711, 2 * huge, flags), idle = shmget(0x4712, huge + 100, flags);
  const int ordinary = shmget(0x4713, 100, IPC_CREAT | IPC_EXCL | 0640);
  CHECK(attached >= 0 && idle >= 0 && ordinary >= 0);
  char* const memory = attach(attached);
  strcpy(memory + huge + 9, "attached");
  char* once = attach(idle);
  strcpy(once + huge + 50, "idle");
  CHECK(shmdt(once) == 0);
  probe::ready();
  probe::wait_for_go();

  CHECK(strcmp(memory + huge + 9, "attached") == 0 && is_huge(memory));
  CHECK_EQUAL(shmget(0x4712, 0, 0), idle);
  once = attach(idle);
  CHECK(strcmp(once + huge + 50, "idle") == 0 && is_huge(once));
  CHECK(shmdt(once) == 0);
  once = attach(ordinary);
  CHECK(!is_huge(once));
  return probe::passed();
}
