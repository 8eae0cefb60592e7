// Memory files that nobody has open: mapped by two processes, one of which shares pages with the other copy-on-write.
// Anonymous shared memory that has a descriptor (/proc/self/map_files) and a private mapping besides.
// ROOT: opens files below map_files
// FILTERS
#include <sys/xattr.h>

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

int open_mapping(const void* memory, int flags) {
  char path[128];
  const auto begin = (unsigned long)memory;
  snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", begin, begin + size);
  const int fd = open(path, flags);
  CHECK(fd >= 0);
  return fd;
}

/// Shared memory with descriptors.
class OpenedMemory {
 public:
  OpenedMemory() {
    first_[0] = 'F';
    first_[4096] = 'f';
    const int fd = open_mapping(const_cast<char*>(first_), O_RDWR | O_APPEND);
    CHECK(lseek(fd, 3, SEEK_SET) == 3);
    appending_ = fd, reading_ = open_mapping(const_cast<char*>(first_), O_RDONLY);
    second_ = map(fd, MAP_SHARED), copied_ = map(fd, MAP_PRIVATE);
    copied_[0] = 'C';
    // Known by its descriptor alone, and of another size than it began with.
    void* passing = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(passing != MAP_FAILED);
    alone_ = open_mapping(passing, O_RDWR);
    CHECK(munmap(passing, size) == 0 && ftruncate(alone_, 0) == 0 && write(alone_, "alone", 5) == 5);
  }

  void check() {
    CHECK_EQUAL(first_[0], 'F');
    CHECK_EQUAL(copied_[0], 'C');
    CHECK_EQUAL(copied_[4096], 'f');
    first_[2 * 4096] = 'G';
    CHECK_EQUAL(second_[2 * 4096], 'G');
    CHECK_EQUAL(copied_[2 * 4096], 'G');
    char byte = 0;
    CHECK(pread(reading_, &byte, 1, 2 * 4096) == 1 && byte == 'G');
    CHECK(write(reading_, &byte, 1) == -1 && errno == EBADF);
    CHECK_EQUAL(lseek(appending_, 0, SEEK_CUR), 3);
    CHECK_EQUAL(fcntl(appending_, F_GETFL) & (O_ACCMODE | O_APPEND), O_RDWR | O_APPEND);
    char text[16] = {};
    CHECK(pread(alone_, text, sizeof text, 0) == 5 && memcmp(text, "alone", 5) == 0);
    CHECK_EQUAL(lseek(alone_, 0, SEEK_CUR), 5);
  }

 private:
  volatile char* first_ = *probe::shared_memory<char[size]>();
  volatile char *second_, *copied_;
  int appending_, reading_, alone_;
};

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
  const int named = memfd_create("with an attribute", 0);
  const bool has_attribute = fsetxattr(named, "user.colour", "blue", 4, 0) == 0;  // Linux 6.6
  const int own = memfd_create("own", 0);
  CHECK(own >= 0 && ftruncate(own, size) == 0);
  volatile char* once = map(own, MAP_SHARED);
  volatile char* again = map(own, MAP_SHARED);
  once[4096] = 'T';
  close(own);

  OpenedMemory opened;
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
  char colour[8];
  CHECK(!has_attribute ||
        (fgetxattr(named, "user.colour", colour, sizeof colour) == 4 && memcmp(colour, "blue", 4) == 0));
  CHECK_EQUAL(shared[2 * 4096], 'S');
  CHECK_EQUAL(copied[0], 'P');
  for (int i = 0; i < 5000 && shared[4096] != 'C'; ++i) usleep(1000);
  CHECK_EQUAL(shared[4096], 'C');
  shared[3 * 4096] = 'D';
  CHECK_EQUAL(shared[0], 0);
  check_twice(once, again);
  opened.check();
  probe::expect_child_passed(child);
  return probe::passed();
}
