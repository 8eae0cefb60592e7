// Files of the own directory in /proc, by whatever name they were opened, and a file opened through /proc/self/fd.
#include <dirent.h>

#include "probe.h"

static void expect_name_in(int status) {
  char text[64] = "";
  CHECK(pread(status, text, sizeof text - 1, 0) > 0);
  CHECK(strncmp(text, "Name:\tfiles_proc\n", 17) == 0);
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  const int directory = open("/proc/self", O_RDONLY | O_DIRECTORY);
  const int status = open("/proc/self/status", O_RDONLY);
  const int maps = openat(directory, "maps", O_RDONLY);
  const int thread = open("/proc/thread-self/comm", O_RDWR);
  CHECK(directory >= 0 && status >= 0 && maps >= 0 && thread >= 0);
  char path[4096], again[64];
  snprintf(path, sizeof path, "%s/file", probe::directory);
  const int file = open(path, O_CREAT | O_RDWR, 0600);
  CHECK(file >= 0 && write(file, "content", 7) == 7);
  snprintf(again, sizeof again, "/proc/self/fd/%d", file);
  const int reopened = open(again, O_RDONLY);
  CHECK(reopened >= 0 && lseek(reopened, 3, SEEK_SET) == 3);
  const int meminfo = open("/proc/meminfo", O_RDONLY),
            size = open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY);
  CHECK(meminfo >= 0 && size >= 0);

  probe::ready();
  probe::wait_for_go();

  expect_name_in(status);
  struct stat own, held;
  CHECK(stat("/proc/self", &own) == 0 && fstat(directory, &held) == 0);
  CHECK_EQUAL(held.st_ino, own.st_ino);
  const int status_again = openat(directory, "status", O_RDONLY);
  CHECK(status_again >= 0);
  expect_name_in(status_again);
  unsigned long begin = 0, end = 0;
  char text[128] = "";
  CHECK(pread(maps, text, sizeof text - 1, 0) > 0 && sscanf(text, "%lx-%lx", &begin, &end) == 2 && begin < end);
  CHECK(write(thread, "renamed", 7) == 7);
  const int comm = open("/proc/self/comm", O_RDONLY);
  CHECK(read(comm, text, sizeof text) == 8 && memcmp(text, "renamed\n", 8) == 0);
  CHECK(read(reopened, text, sizeof text) == 4 && memcmp(text, "tent", 4) == 0);
  CHECK(read(meminfo, text, 9) == 9 && memcmp(text, "MemTotal:", 9) == 0);
  CHECK(read(size, text, sizeof text) > 0);
  return probe::passed();
}
