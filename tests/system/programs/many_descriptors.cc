// Thousands of descriptors: the numbers that a restore uses in passing must not run out.
#include "probe.h"

constexpr int count = 5000;

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  CHECK(probe::raise_descriptor_limit() > 2 * count);
  const int first = open("/dev/null", O_RDONLY);
  CHECK(first >= 0);
  int last = first;
  for (int i = 1; i < count; ++i) {
    const int fd = i % 2 != 0 ? open("/dev/zero", O_RDONLY) : open(argv[0], O_RDONLY);
    CHECK_EQUAL(fd, last + 1);
    last = fd;
  }
  probe::ready();
  probe::wait_for_go();
  char byte = 1;
  CHECK(read(first, &byte, 1) == 0);
  for (int fd = first + 1; fd <= last; fd += 2) CHECK(read(fd, &byte, 1) == 1 && byte == 0);
  for (int fd = first + 2; fd <= last; fd += 2) CHECK(pread(fd, &byte, 1, 0) == 1 && byte == 0x7f);
  return probe::passed();
}
