// VARIANTS: host three running
// (In a pid namespace of its own the tree does not know the numbers that stasis' /proc has.)
// Files of /proc of other tasks of the tree: of one that lives, of a zombie, and of one that has ended and was reaped.
// FAIL_RESTORE
#include <dirent.h>

#include "probe.h"

static int file_of(pid_t pid, const char* name, int flags) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
  const int fd = open(path, flags);
  CHECK(fd >= 0);
  return fd;
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  const pid_t living = fork();
  if (living == 0) {
    for (;;) pause();
  }
  const pid_t zombie = fork();
  if (zombie == 0) _exit(5);
  const pid_t ended = fork();
  if (ended == 0) {
    for (;;) pause();
  }
  const int of_living = file_of(living, "stat", O_RDONLY), mappings = file_of(living, "maps", O_RDONLY);
  const int of_zombie = file_of(zombie, "stat", O_RDONLY);
  const int of_ended = file_of(ended, "stat", O_RDONLY), directory = file_of(ended, "", O_RDONLY | O_DIRECTORY);
  CHECK(kill(ended, SIGKILL) == 0 && waitpid(ended, nullptr, 0) == ended);
  siginfo_t info;
  CHECK(waitid(P_PID, (id_t)zombie, &info, WEXITED | WNOWAIT) == 0);

  probe::ready();
  probe::wait_for_go();

  const auto expect_pid = [](int fd, pid_t pid) {
    char text[64] = "";
    CHECK(pread(fd, text, sizeof text - 1, 0) > 0);
    CHECK_EQUAL(atoi(text), pid);
  };
  expect_pid(of_living, living);
  expect_pid(of_zombie, zombie);
  char text[16];
  CHECK(pread(mappings, text, sizeof text, 0) == sizeof text);
  CHECK(pread(of_ended, text, sizeof text, 0) < 0 && errno == ESRCH);
  CHECK(openat(directory, "stat", O_RDONLY) < 0 && (errno == ENOENT || errno == ESRCH));
  CHECK(kill(living, SIGKILL) == 0 && waitpid(living, nullptr, 0) == living);
  CHECK(waitpid(zombie, nullptr, 0) == zombie);
  return probe::passed();
}
