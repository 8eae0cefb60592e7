// Memory files that nobody has open: mapped by two processes, one of which shares pages with the other copy-on-write.
#include "probe.h"

namespace {

constexpr size_t size = 16 * 4096;

char* map(int fd, int flags) {
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, fd, 0);
  CHECK(memory != MAP_FAILED);
  return static_cast<char*>(memory);
}

/// What only one process maps, and maps twice.
void check_twice(volatile char* one, volatile char* other) {
  CHECK_EQUAL(one[4096], 'T');
  one[0] = 'U';
  CHECK_EQUAL(other[0], 'U');
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  const int fd = memfd_create("shared", 0);
  CHECK(fd >= 0 && ftruncate(fd, size) == 0);
  volatile char* shared = map(fd, MAP_SHARED);
  shared[2 * 4096] = 'S';
  volatile char* copied = map(fd, MAP_PRIVATE);
  copied[0] = 'P';
  close(fd);
  const int own = memfd_create("own", 0);
  CHECK(own >= 0 && ftruncate(own, size) == 0);
  volatile char* once = map(own, MAP_SHARED);
  volatile char* again = map(own, MAP_SHARED);
  once[4096] = 'T';
  close(own);

  const pid_t child = fork();
  if (child == 0) {
    CHECK(munmap(const_cast<char*>(once), size) == 0 && munmap(const_cast<char*>(again), size) == 0);
    probe::wait_for_go();
    CHECK_EQUAL(copied[0], 'P');
    CHECK_EQUAL(copied[2 * 4096], 'S');
    shared[4096] = 'C';
    while (shared[3 * 4096] != 'D') usleep(1000);
    _exit(0);
  }
  usleep(20'000);
  probe::ready();
  probe::wait_for_go();
  CHECK_EQUAL(shared[2 * 4096], 'S');
  CHECK_EQUAL(copied[0], 'P');
  for (int i = 0; i < 5000 && shared[4096] != 'C'; ++i) usleep(1000);
  CHECK_EQUAL(shared[4096], 'C');
  shared[3 * 4096] = 'D';
  CHECK_EQUAL(shared[0], 0);
  check_twice(once, again);
  probe::expect_child_passed(child);
  return probe::passed();
}
