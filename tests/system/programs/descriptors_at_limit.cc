// Descriptors under the highest numbers that there are, as Valgrind has its own: a restore has to find numbers for its
// passing use below them.
#include "probe.h"

static void expect(int fd, const char* text) {
  char got[16] = {};
  CHECK(read(fd, got, strlen(text)) == (ssize_t)strlen(text) && strcmp(got, text) == 0);
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  const rlim_t limit = probe::raise_descriptor_limit();
  CHECK(limit < 1u << 30);
  const int highest = (int)limit - 1;
  char path[4096];
  snprintf(path, sizeof path, "%s/file", probe::directory);
  const int file = open(path, O_RDWR | O_CREAT, 0600);
  CHECK(file >= 0 && write(file, "content", 7) == 7);
  void* const mapped = mmap(nullptr, 4096, PROT_READ, MAP_SHARED, file, 0);
  CHECK(mapped != MAP_FAILED && dup3(file, highest, O_CLOEXEC) == highest && close(file) == 0);
  int ends[2];
  CHECK(pipe(ends) == 0 && dup2(ends[0], highest - 1) == highest - 1 && dup2(ends[1], highest - 3) == highest - 3);
  CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
  const pid_t child = fork();
  if (child == 0) {
    CHECK(dup2(highest, highest - 2) == highest - 2 && close(highest) == 0);
    expect(highest - 1, "go");
    CHECK(lseek(highest - 2, 0, SEEK_SET) == 0);
    expect(highest - 2, "content");
    _exit(0);
  }
  CHECK(child > 0);

  probe::ready();
  probe::wait_for_go();

  CHECK(memcmp(mapped, "content", 7) == 0);
  CHECK_EQUAL(lseek(highest, 0, SEEK_CUR), 7);
  CHECK(fcntl(highest, F_GETFD) == FD_CLOEXEC);
  CHECK(write(highest - 3, "go", 2) == 2);
  probe::expect_child_passed(child);
  return probe::passed();
}
