// Files that are open but unlinked: with their content, owner, mode, extended attributes and access control list,
// shared by two descriptions, and a directory.
// FAIL_RESTORE
// ROOT: gives files away
// FILTERS
#include <sys/xattr.h>

#include "probe.h"

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  char path[4096];
  snprintf(path, sizeof path, "%s/ghost", probe::directory);
  const int first = open(path, O_CREAT | O_RDWR, 0612);
  const int second = open(path, O_RDONLY);
  CHECK(first >= 0 && second >= 0);
  CHECK(write(first, "ghost content", 13) == 13);
  CHECK(pwrite(first, "far", 3, 100'000) == 3);  // a hole before it
  CHECK(fchown(first, 12, 34) == 0 && fchmod(first, 0612) == 0);
  const bool has_attributes =
      fsetxattr(first, "user.colour", "blue", 4, 0) == 0 && fsetxattr(first, "trusted.x", "", 0, 0) == 0;
  CHECK(has_attributes || errno == EOPNOTSUPP);
  // Version 2; what the owner, user 7, the group, at most, and all others may do.
  const unsigned char list[] = {2, 0, 0,   0,   1,   0,   6,  0, 255, 255, 255, 255, 2,   0,  4,
                                0, 7, 0,   0,   0,   4,   0,  1, 0,   255, 255, 255, 255, 16, 0,
                                5, 0, 255, 255, 255, 255, 32, 0, 2,   0,   255, 255, 255, 255};
  const bool has_list = fsetxattr(first, "system.posix_acl_access", list, sizeof list, 0) == 0;
  CHECK(has_list || errno == EOPNOTSUPP);
  struct stat before;
  CHECK(fstat(first, &before) == 0);
  CHECK(unlink(path) == 0);

  snprintf(path, sizeof path, "%s/gone", probe::directory);
  CHECK(mkdir(path, 0700) == 0);
  const int directory = open(path, O_RDONLY | O_DIRECTORY);
  CHECK(directory >= 0 && rmdir(path) == 0);

  probe::ready();
  probe::wait_for_go();

  struct stat a, b;
  CHECK(fstat(first, &a) == 0 && fstat(second, &b) == 0);
  CHECK_EQUAL(a.st_ino, b.st_ino);
  CHECK_EQUAL(a.st_nlink, 0);
  CHECK_EQUAL(a.st_size, 100'003);
  CHECK_EQUAL(a.st_mode, before.st_mode);
  CHECK_EQUAL(a.st_mtime, before.st_mtime);
  char value[64];
  CHECK(!has_attributes ||
        (fgetxattr(first, "user.colour", value, sizeof value) == 4 && memcmp(value, "blue", 4) == 0));
  CHECK(!has_attributes || fgetxattr(first, "trusted.x", value, sizeof value) == 0);
  CHECK(!has_list || (fgetxattr(first, "system.posix_acl_access", value, sizeof value) == (ssize_t)sizeof list &&
                      memcmp(value, list, sizeof list) == 0));
  CHECK_EQUAL(a.st_uid, 12);
  CHECK_EQUAL(a.st_gid, 34);
  CHECK(a.st_blocks * 512 < 90'000);  // the hole is still one
  CHECK_EQUAL(lseek(first, 0, SEEK_CUR), 13);
  char bytes[13];
  CHECK(read(second, bytes, 13) == 13 && memcmp(bytes, "ghost content", 13) == 0);
  CHECK(pread(second, bytes, 3, 100'000) == 3 && memcmp(bytes, "far", 3) == 0);
  CHECK(write(first, "!", 1) == 1 && pread(second, bytes, 1, 13) == 1 && bytes[0] == '!');
  snprintf(path, sizeof path, "%s/ghost", probe::directory);
  CHECK(access(path, F_OK) != 0);
  CHECK(fstat(directory, &a) == 0);
  CHECK_EQUAL(a.st_nlink, 0);
  return probe::passed();
}
