// Files of huge pages (MFD_HUGETLB): mapped shared and private, by a child too, read by a descriptor, sealed, with a
// mapping only, and with a descriptor only.
// FAIL_RESTORE
// FILTERS
// REQUIRES: n=/proc/sys/vm/nr_hugepages; [ $(cat $n) -gt 31 ] || echo 32 > $n; [ $(cat $n) -gt 31 ] || ! echo too few
#include "probe.h"

namespace {

constexpr size_t huge = 2 << 20;
constexpr int huge_2mb = 21 << 26;  // MFD_HUGE_2MB of linux/memfd.h, which does not go with sys/mman.h

int create(const char* name, size_t pages) {
  const int fd = memfd_create(name, MFD_HUGETLB | huge_2mb | MFD_ALLOW_SEALING);
  CHECK(fd >= 0 && ftruncate(fd, static_cast<off_t>(pages * huge)) == 0);
  return fd;
}

char* map(int fd, size_t pages, int flags, size_t first = 0) {
  void* memory = mmap(nullptr, pages * huge, PROT_READ | PROT_WRITE, flags, fd, static_cast<off_t>(first * huge));
  CHECK(memory != MAP_FAILED);
  return static_cast<char*>(memory);
}

void write_through(int fd, size_t at, const char* text) {
  char* const page = map(fd, 1, MAP_SHARED, at / huge);
  strcpy(page + at % huge, text);
  CHECK(munmap(page, huge) == 0);
}

void expect_in(int fd, size_t at, const char* text) {
  char found[64] = {};
  CHECK(pread(fd, found, strlen(text) + 1, static_cast<off_t>(at)) == static_cast<ssize_t>(strlen(text) + 1));
  CHECK(strcmp(found, text) == 0);
}

struct Shared {
  int go;
};

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  auto* shared = probe::shared_memory<Shared>();

  const int mapped = create("mapped", 4);
  char* const whole = map(mapped, 4, MAP_SHARED);
  char* const part = map(mapped, 1, MAP_SHARED, 2);
  strcpy(whole + 5, "first");
  strcpy(whole + 2 * huge + 4096, "third");
  char* const own = map(mapped, 3, MAP_PRIVATE);
  strcpy(own + 100, "mine");  // a page of our own, copied from the file
  CHECK(lseek(mapped, 77, SEEK_SET) == 77);

  const int idle = create("idle", 2);
  write_through(idle, 2 * huge - 7, "ending");
  const int sealed = create("sealed", 1);
  write_through(sealed, 3, "fixed");
  CHECK(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0);

  const int closed = create("closed", 1);
  char* const remains = map(closed, 1, MAP_SHARED);
  strcpy(remains + 4096, "still here");
  CHECK(close(closed) == 0);

  const pid_t child = probe::start([&] {
    strcpy(own + 200, "the child's");
    probe::await(&shared->go, 1);
    CHECK(strcmp(own + 200, "the child's") == 0 && strcmp(own + 100, "mine") == 0);
    CHECK(strcmp(whole + 5, "changed") == 0 && strcmp(remains + 4096, "still here") == 0);
    strcpy(remains + 8192, "and answered");
  });
  probe::ready();
  probe::wait_for_go();

  struct stat status;
  CHECK(fstat(mapped, &status) == 0);
  CHECK_EQUAL(status.st_size, 4 * huge);
  CHECK_EQUAL(status.st_blksize, huge);
  CHECK_EQUAL(lseek(mapped, 0, SEEK_CUR), 77);
  CHECK(strcmp(whole + 5, "first") == 0 && strcmp(part + 4096, "third") == 0);
  CHECK_EQUAL(whole[huge], 0);
  CHECK(strcmp(own + 100, "mine") == 0 && strcmp(own + 5, "first") == 0 && own[200] == 0);
  CHECK_EQUAL(whole[100], 0);
  strcpy(part + 4096, "altered");
  expect_in(mapped, 2 * huge + 4096, "altered");
  CHECK(strcmp(own + 2 * huge + 4096, "altered") == 0);  // of a page that it has not written it sees the file's

  expect_in(idle, 2 * huge - 7, "ending");
  expect_in(sealed, 3, "fixed");
  CHECK_EQUAL(fcntl(sealed, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
  CHECK(mmap(nullptr, huge, PROT_READ | PROT_WRITE, MAP_SHARED, sealed, 0) == MAP_FAILED);

  strcpy(whole + 5, "changed");
  __atomic_store_n(&shared->go, 1, __ATOMIC_RELEASE);
  probe::expect_child_passed(child);
  CHECK(strcmp(remains + 8192, "and answered") == 0);
  return probe::passed();
}
