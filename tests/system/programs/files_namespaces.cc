// Open files of /proc/self/ns: they stand for the same namespaces afterwards.
#include "probe.h"

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  const char* const names[] = {"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"};
  int files[8];
  char path[64];
  for (int i = 0; i < 8; ++i) {
    snprintf(path, sizeof path, "/proc/self/ns/%s", names[i]);
    files[i] = open(path, O_RDONLY | (i % 2 != 0 ? O_CLOEXEC : 0));
    CHECK(files[i] >= 0);
  }

  probe::ready();
  probe::wait_for_go();

  for (int i = 0; i < 8; ++i) {
    struct stat held, own;
    snprintf(path, sizeof path, "/proc/self/ns/%s", names[i]);
    CHECK(fstat(files[i], &held) == 0 && stat(path, &own) == 0);
    CHECK_EQUAL(held.st_ino, own.st_ino);
    CHECK_EQUAL(fcntl(files[i], F_GETFD), i % 2);
  }
  return probe::passed();
}
