// A task without the vDSO's code, but with its data pages, as under Valgrind; something else is where the code was.
#include "probe.h"

struct Found {
  uintptr_t begin = 0, end = 0;
};
/// Where a mapping is, according to /proc/self/maps. No function of the C library that the vDSO would answer.
static Found find(const char* name) {
  static char maps[1 << 16];
  const int fd = open("/proc/self/maps", O_RDONLY);
  CHECK(fd >= 0);
  size_t filled = 0;
  for (ssize_t count; (count = read(fd, maps + filled, sizeof maps - 1 - filled)) > 0;) filled += (size_t)count;
  maps[filled] = 0;
  CHECK(close(fd) == 0);
  Found found;
  for (char* line = strtok(maps, "\n"); line != nullptr; line = strtok(nullptr, "\n")) {
    if (strstr(line, name) == nullptr) continue;
    CHECK(sscanf(line, "%lx-%lx", &found.begin, &found.end) == 2);
    break;
  }
  return found;
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  int go[2], done[2];
  CHECK(pipe(go) == 0 && pipe(done) == 0);
  const pid_t child = fork();
  if (child == 0) {
    char byte = 0;
    const Found code = find("[vdso]"), data = find("[vvar]");
    CHECK(code.begin != 0 && data.begin != 0 && munmap((void*)code.begin, code.end - code.begin) == 0);
    void* const instead = (void*)code.begin;
    CHECK(mmap(instead, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) ==
          instead);
    strcpy((char*)instead, "instead of code");
    CHECK(write(done[1], "x", 1) == 1 && read(go[0], &byte, 1) == 1);
    CHECK(strcmp((char*)instead, "instead of code") == 0 && find("[vdso]").begin == 0);
    CHECK(find("[vvar]").begin == data.begin && find("[vvar]").end == data.end);
    _exit(0);
  }
  char byte = 0;
  CHECK(child > 0 && read(done[0], &byte, 1) == 1);

  probe::ready();
  probe::wait_for_go();

  int status = 0;
  CHECK(write(go[1], "x", 1) == 1 && waitpid(child, &status, 0) == child);
  CHECK_EQUAL(status, 0);
  return probe::passed();
}
