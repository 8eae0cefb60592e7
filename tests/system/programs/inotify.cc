// inotify: watches of files and directories, their descriptors with gaps between, one-shots, symbolic links, and what
// comes after.
#include <sys/inotify.h>
#include <sys/ioctl.h>

#include "probe.h"

static char paths[4][4200];

static const char* path_of(int index, const char* name) {
  snprintf(paths[index], sizeof paths[index], "%s/%s", probe::directory, name);
  return paths[index];
}

static int watch(int fd, const char* path, uint32_t mask) {
  const int wd = inotify_add_watch(fd, path, mask);
  CHECK(wd > 0);
  return wd;
}

/// One event and no more: there is no room for a second. Short names take 16 bytes.
static void expect_event(int fd, int wd, uint32_t mask, size_t name = 0) {
  alignas(inotify_event) char buffer[sizeof(inotify_event) + 16];
  CHECK(read(fd, buffer, sizeof(inotify_event) + name) > 0);
  const auto* event = reinterpret_cast<const inotify_event*>(buffer);
  CHECK_EQUAL(event->wd, wd);
  CHECK_EQUAL(event->mask, mask);
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  const char *file = path_of(0, "file"), *folder = path_of(1, "a folder"), *link = path_of(2, "link");
  const int made = open(file, O_CREAT | O_WRONLY, 0600);
  CHECK(made >= 0 && mkdir(folder, 0700) == 0 && symlink("file", link) == 0);
  close(made);

  const int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC), idle = inotify_init1(IN_NONBLOCK);
  CHECK(fd >= 0 && idle >= 0);
  for (int i = 0; i < 50; ++i) CHECK(inotify_rm_watch(fd, watch(fd, folder, IN_CREATE)) == 0);
  char ignored[8192];
  const int of_file = watch(fd, file, IN_MODIFY | IN_ATTRIB);
  for (int i = 0; i < 7; ++i) CHECK(inotify_rm_watch(fd, watch(fd, folder, IN_CREATE)) == 0);
  const int of_folder = watch(fd, folder, IN_CREATE | IN_ONLYDIR | IN_EXCL_UNLINK);
  const int of_link = watch(fd, link, IN_DELETE_SELF | IN_DONT_FOLLOW);
  while (read(fd, ignored, sizeof ignored) > 0) {
  }
  // A file that has lost its name since, as logs do when they are rotated.
  const int rotated = open(path_of(3, "rotated"), O_CREAT | O_RDWR, 0600);
  const int of_rotated = watch(fd, paths[3], IN_MODIFY | IN_CLOSE_WRITE);
  CHECK(rotated >= 0 && unlink(paths[3]) == 0);
  const int once = inotify_init1(IN_NONBLOCK);
  const int of_once = watch(once, file, IN_MODIFY | IN_ONESHOT);
  CHECK(of_file == 51 && of_folder == 59 && of_link == 60 && of_rotated == 61 && of_once == 1);
  probe::ready();
  probe::wait_for_go();

  CHECK_EQUAL(fcntl(fd, F_GETFD), FD_CLOEXEC);
  CHECK_EQUAL(fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
  probe::expect_nothing_to_read(fd);
  probe::expect_nothing_to_read(idle);
  probe::write_to(file);
  expect_event(fd, of_file, IN_MODIFY);
  probe::expect_nothing_to_read(fd);
  expect_event(once, of_once, IN_MODIFY);
  expect_event(once, of_once, IN_IGNORED);
  probe::write_to(file);
  probe::expect_nothing_to_read(once);
  expect_event(fd, of_file, IN_MODIFY);
  CHECK(write(rotated, "x", 1) == 1);
  expect_event(fd, of_rotated, IN_MODIFY);
  CHECK(close(rotated) == 0);
  expect_event(fd, of_rotated, IN_CLOSE_WRITE);
  expect_event(fd, of_rotated, IN_IGNORED);
  CHECK(mkdir(path_of(3, "a folder/below"), 0700) == 0);
  expect_event(fd, of_folder, IN_CREATE | IN_ISDIR, 16);
  CHECK(unlink(link) == 0);
  expect_event(fd, of_link, IN_DELETE_SELF);
  expect_event(fd, of_link, IN_IGNORED);
  CHECK_EQUAL(watch(fd, probe::directory, IN_DELETE), 62);  // the next number is the next
  CHECK(rmdir(paths[3]) == 0);
  CHECK(inotify_rm_watch(fd, of_file) == 0);
  expect_event(fd, of_file, IN_IGNORED);
  return probe::passed();
}
