// System V shared memory of huge pages in the system's own IPC namespace: attached twice, in part, by a child, and
// destroyed while it is attached.
// FAIL_RESTORE
// ROOT: may lock memory
// FILTERS
// REQUIRES: n=/proc/sys/vm/nr_hugepages; [ $(cat $n) -gt 31 ] || echo 32 > $n; [ $(cat $n) -gt 31 ] || ! echo too few
#include "shm.h"

namespace {

using shm::attach;
using shm::huge;

int create(size_t size) {
  const int id = shmget(IPC_PRIVATE, size, IPC_CREAT | 0600 | shm::of_huge_pages);
  CHECK(id >= 0);
  return id;
}

struct Shared {
  int go;
};

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  auto* shared = probe::shared_memory<Shared>();
  const int lasting = create(3 * huge - 5000), passing = create(huge);
  char* const whole = attach(lasting);
  char* const reading = attach(lasting, SHM_RDONLY);
  char* const parts = attach(lasting);
  CHECK(munmap(parts, huge) == 0);
  char* const alone = attach(passing);
  CHECK(shmctl(passing, IPC_RMID, nullptr) == 0);
  strcpy(whole + 7, "first");
  strcpy(whole + 2 * huge + 4096, "third");
  strcpy(alone + huge - 10, "end");

  const pid_t child = probe::start([&] {
    probe::await(&shared->go, 1);
    CHECK(strcmp(whole + 7, "changed") == 0);
    strcpy(alone, "answered");
  });
  probe::ready();
  probe::wait_for_go();

  CHECK(strcmp(reading + 7, "first") == 0 && strcmp(parts + 2 * huge + 4096, "third") == 0);
  CHECK_EQUAL(whole[huge], 0);
  CHECK(strcmp(alone + huge - 10, "end") == 0);
  shmid_ds found = {};
  CHECK(shmctl(lasting, IPC_STAT, &found) == 0);
  CHECK_EQUAL(found.shm_segsz, 3 * huge - 5000);
  CHECK_EQUAL(found.shm_nattch, 6);
  strcpy(whole + 7, "changed");
  __atomic_store_n(&shared->go, 1, __ATOMIC_RELEASE);
  probe::expect_child_passed(child);
  CHECK(strcmp(alone, "answered") == 0);
  CHECK(shmctl(lasting, IPC_RMID, nullptr) == 0);
  return probe::passed();
}
