// What every self-checking program of the system tests shares.
//
// The shape of a program: set something up, call ready(), call wait_for_go() (the dump and the restore happen there),
// check that everything is as it was, call passed(). The driver (tests/system/run) gives one argument, a directory:
// `ready`, `go` and `result` are files in it. Nothing here uses more of the system than it must, so that a program
// tests what its name says and little else.
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

namespace probe {

inline const char* directory = nullptr;

inline void write_result(const char* text) {
  char path[4096], temporary[4096];
  snprintf(path, sizeof path, "%s/result", directory);
  snprintf(temporary, sizeof temporary, "%s/result.%d", directory, getpid());
  const int fd = open(temporary, O_CREAT | O_WRONLY | O_TRUNC, 0644);
  if (fd < 0 || write(fd, text, strlen(text)) < 0) _exit(99);
  close(fd);
  rename(temporary, path);
}

/// Ends the program with the reason. The first failure counts.
[[noreturn]] __attribute__((format(printf, 1, 2))) inline void failed(const char* format, ...) {
  char text[1024] = "FAIL ";
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text + 5, sizeof text - 5, format, arguments);
  va_end(arguments);
  char path[4096];
  snprintf(path, sizeof path, "%s/result", directory);
  if (access(path, F_OK) != 0) write_result(text);
  _exit(1);
}

#define CHECK(condition)                                                                                 \
  do {                                                                                                   \
    if (!(condition))                                                                                    \
      probe::failed("%s:%d: %s (errno %d: %s)", __FILE__, __LINE__, #condition, errno, strerror(errno)); \
  } while (0)

#define CHECK_EQUAL(actual, expected)                                                                              \
  do {                                                                                                             \
    const long long probe_actual = (long long)(actual), probe_expected = (long long)(expected);                    \
    if (probe_actual != probe_expected)                                                                            \
      probe::failed("%s:%d: %s is %lld (%#llx), expected %lld (%#llx)", __FILE__, __LINE__, #actual, probe_actual, \
                    probe_actual, probe_expected, probe_expected);                                                 \
  } while (0)

inline void begin(int argc, char** argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: %s DIRECTORY\n", argv[0]);
    exit(2);
  }
  directory = argv[1];
}

/// Everything is set up: the dump may come at any moment from here on, and finds no trace of saying so.
inline void ready() {
  char path[4096], temporary[4096];
  snprintf(path, sizeof path, "%s/ready", directory);
  snprintf(temporary, sizeof temporary, "%s/ready.%d", directory, getpid());
  const int fd = open(temporary, O_CREAT | O_WRONLY, 0644);
  if (fd < 0) failed("cannot create %s: %s", temporary, strerror(errno));
  close(fd);
  if (rename(temporary, path) != 0) failed("cannot rename %s: %s", temporary, strerror(errno));
}

inline bool go_has_come() {
  char path[4096];
  snprintf(path, sizeof path, "%s/go", directory);
  return access(path, F_OK) == 0;
}

/// Sleeps until the driver says that the cycle is over.
inline void wait_for_go() {
  while (!go_has_come()) {
    const timespec pause = {0, 5'000'000};
    nanosleep(&pause, nullptr);
  }
}

inline int passed() {
  char path[4096];
  snprintf(path, sizeof path, "%s/result", directory);
  if (access(path, F_OK) != 0) write_result("PASS");
  return 0;
}

/// Waits for a child that checks for itself and expects exit status 0 of it.
inline void expect_child_passed(pid_t child) {
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) failed("child %d ended with wait status %#x", child, status);
}

/// Spins on a shared flag: for setting up threads and children before ready().
inline void await(volatile int* flag, int value) {
  while (__atomic_load_n(flag, __ATOMIC_ACQUIRE) != value) {
    const timespec pause = {0, 1'000'000};
    nanosleep(&pause, nullptr);
  }
}

/// By another thread, when the first one is about to end alone: /proc/self is named after the first, dead or alive.
inline void await_end_of_first_thread() {
  for (char text[512] = {}; strstr(text, ") Z ") == nullptr; usleep(1000)) {
    const int fd = open("/proc/self/stat", O_RDONLY);
    if (fd < 0 || read(fd, text, sizeof text - 1) <= 0) failed("read /proc/self/stat: %s", strerror(errno));
    close(fd);
  }
}

/// A child that lives so, and ends with status 0. `flags`: of clone(2), CLONE_NEW….
template <typename Life>
pid_t start(Life life, unsigned long flags = 0) {
  const auto pid = static_cast<pid_t>(syscall(SYS_clone, flags | SIGCHLD, nullptr, nullptr, nullptr, nullptr));
  CHECK(pid >= 0);
  if (pid != 0) return pid;
  life();
  _exit(0);
}

/// The soft limit of open files becomes the hard one, which is returned.
inline rlim_t raise_descriptor_limit() {
  rlimit limit;
  CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
  limit.rlim_cur = limit.rlim_max;
  CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
  return limit.rlim_max;
}

/// From a descriptor that does not wait.
inline void expect_nothing_to_read(int fd) {
  char buffer[4096];
  CHECK(read(fd, buffer, sizeof buffer) < 0 && errno == EAGAIN);
}

/// Opens the file for writing, writes to it and closes it.
inline void write_to(const char* path) {
  const int fd = open(path, O_WRONLY);
  CHECK(fd >= 0 && write(fd, "x", 1) == 1);
  close(fd);
}

/// Memory shared with children, zeroed.
template <typename T>
T* shared_memory() {
  void* memory = mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) failed("mmap: %s", strerror(errno));
  return static_cast<T*>(memory);
}

}  // namespace probe
