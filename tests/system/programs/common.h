// What CLONE_FILES, CLONE_FS, CLONE_VM and CLONE_SIGHAND make common: one process changes all of it, another sees it.
#pragma once

#include <sched.h>

#include "probe.h"

namespace common {

constexpr int all_kinds = CLONE_FILES | CLONE_FS | CLONE_VM | CLONE_SIGHAND;

inline volatile int in_memory = 0;

inline void handler(int) {}

/// The descriptor that it opens.
inline int change_all() {
  char path[4096];
  snprintf(path, sizeof path, "%s/shared", probe::directory);
  const int fd = open(path, O_CREAT | O_RDWR, 0600);
  CHECK(fd >= 0 && write(fd, "x", 1) == 1);
  CHECK(chdir("/usr") == 0);
  signal(SIGUSR2, handler);
  in_memory = 99;
  return fd;
}

inline void expect_directory(const char* path) {
  char here[4096];
  CHECK(getcwd(here, sizeof here) != nullptr && strcmp(here, path) == 0);
}

inline void expect_all_changed(int fd) {
  char byte = 0;
  CHECK(pread(fd, &byte, 1, 0) == 1 && byte == 'x');
  expect_directory("/usr");
  CHECK_EQUAL(in_memory, 99);
  struct sigaction action;
  CHECK(sigaction(SIGUSR2, nullptr, &action) == 0 && action.sa_handler == handler);
}

}  // namespace common
