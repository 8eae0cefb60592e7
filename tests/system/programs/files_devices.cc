// Devices without state whose own names have gone. With --evasive-devices any other path of the same device will do.
// DUMP: --evasive-devices
// REQUIRES: mknod /dev/stasis-probe c 1 3 && rm /dev/stasis-probe || { echo "no devices can be made"; false; }
// ROOT: makes device nodes
#include <sys/sysmacros.h>

#include "probe.h"

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  char path[4096];
  snprintf(path, sizeof path, "%s/zero", probe::directory);
  CHECK(mknod(path, S_IFCHR | 0666, makedev(1, 5)) == 0);
  const int zero = open(path, O_RDWR);
  CHECK(zero >= 0 && unlink(path) == 0);
  const int null = open("/dev/null", O_WRONLY | O_APPEND);

  probe::ready();
  probe::wait_for_go();

  struct stat about;
  CHECK(fstat(zero, &about) == 0 && S_ISCHR(about.st_mode));
  CHECK_EQUAL(about.st_rdev, makedev(1, 5));
  char bytes[4] = "abc";
  CHECK(read(zero, bytes, 4) == 4 && memcmp(bytes, "\0\0\0\0", 4) == 0);
  CHECK(write(null, bytes, 4) == 4);
  CHECK(access(path, F_OK) != 0);
  return probe::passed();
}
