// Private and shared file mappings, of named and of unlinked files, and a memfd.
// FILTERS
// LAZY
#include "probe.h"

namespace {

constexpr size_t size = 16 * 4096;

int file(const char* name, bool unlinked) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", probe::directory, name);
  const int fd = open(path, O_CREAT | O_RDWR, 0600);
  CHECK(fd >= 0);
  for (size_t at = 0; at < size; at += 4096) {
    char block[4096];
    memset(block, 'a' + static_cast<int>(at / 4096), sizeof block);
    CHECK(pwrite(fd, block, sizeof block, at) == sizeof block);
  }
  if (unlinked) CHECK(unlink(path) == 0);
  return fd;
}

char* map(int fd, int flags, size_t offset = 0) {
  void* memory = mmap(nullptr, size - offset, PROT_READ | PROT_WRITE, flags, fd, offset);
  CHECK(memory != MAP_FAILED);
  return static_cast<char*>(memory);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  const int named = file("named", false), unlinked = file("unlinked", true);
  const int memory_file = memfd_create("probe", MFD_ALLOW_SEALING);
  CHECK(memory_file >= 0 && ftruncate(memory_file, size) == 0);
  CHECK(fcntl(memory_file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);

  char* named_private = map(named, MAP_PRIVATE, 4096);
  char* named_shared = map(named, MAP_SHARED);
  char* unlinked_private = map(unlinked, MAP_PRIVATE);
  char* unlinked_shared = map(unlinked, MAP_SHARED);
  char* memfd_shared = map(memory_file, MAP_SHARED);
  close(unlinked);  // held by its mappings alone
  named_private[4096] = 'P';
  unlinked_private[2 * 4096] = 'Q';
  unlinked_shared[3 * 4096] = 'R';
  memfd_shared[5 * 4096] = 'M';

  probe::ready();
  probe::wait_for_go();

  CHECK_EQUAL(named_private[0], 'b');
  CHECK_EQUAL(named_private[4096], 'P');
  CHECK_EQUAL(named_shared[2 * 4096], 'c');
  CHECK_EQUAL(unlinked_private[2 * 4096], 'Q');
  CHECK_EQUAL(unlinked_private[3 * 4096], 'R');  // never written here: the file's own page
  CHECK_EQUAL(unlinked_shared[3 * 4096], 'R');
  CHECK_EQUAL(unlinked_shared[2 * 4096], 'c');
  CHECK_EQUAL(memfd_shared[5 * 4096], 'M');
  // The mappings still belong to the files.
  named_shared[0] = 'N';
  char byte = 0;
  CHECK(pread(named, &byte, 1, 0) == 1);
  CHECK_EQUAL(byte, 'N');
  memfd_shared[0] = 'F';
  CHECK(pread(memory_file, &byte, 1, 0) == 1);
  CHECK_EQUAL(byte, 'F');
  CHECK_EQUAL(fcntl(memory_file, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW);
  struct stat about;
  CHECK(fstat(named, &about) == 0);
  CHECK_EQUAL(about.st_nlink, 1);
  return probe::passed();
}
