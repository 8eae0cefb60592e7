// An open file whose own name is gone but which lives on under another link.
// DUMP: --link-remap
#include "probe.h"

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  char path[4096], kept[4096];
  snprintf(path, sizeof path, "%s/linked", probe::directory);
  snprintf(kept, sizeof kept, "%s/kept", probe::directory);
  const int file = open(path, O_CREAT | O_RDWR, 0600);
  CHECK(file >= 0 && write(file, "content", 7) == 7);
  CHECK(link(path, kept) == 0 && unlink(path) == 0);
  struct stat before, after;
  CHECK(fstat(file, &before) == 0);
  probe::ready();
  probe::wait_for_go();
  CHECK(fstat(file, &after) == 0);
  CHECK_EQUAL(after.st_ino, before.st_ino);
  CHECK_EQUAL(after.st_nlink, 1);
  CHECK(access(path, F_OK) != 0);
  CHECK(stat(kept, &after) == 0);
  CHECK_EQUAL(after.st_ino, before.st_ino);
  CHECK_EQUAL(lseek(file, 0, SEEK_CUR), 7);
  return probe::passed();
}
