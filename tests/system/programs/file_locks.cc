// Locks of files: posix (several ranges, of several processes, of a table that two share), flock (of an open file that
// parent and child share), of open files, on directories, FIFOs and unlinked files, and one that somebody waits for.
// DUMP: --file-locks
// FAIL_RESTORE
// ROOT: has a process of another user
#include <sched.h>
#include <sys/file.h>

#include <initializer_list>

#include "probe.h"

namespace {

struct Shared {
  int ready, check, checked;
};
Shared* shared;

int open_in_directory(const char* name, int flags) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", probe::directory, name);
  const int fd = open(path, flags | O_CREAT, 0666);
  CHECK(fd >= 0);
  return fd;
}

struct flock range(short type, off_t start, off_t length) {
  struct flock lock = {};
  lock.l_type = type, lock.l_whence = SEEK_SET, lock.l_start = start, lock.l_len = length;
  return lock;
}

void lock(int fd, int command, short type, off_t start, off_t length) {
  struct flock wanted = range(type, start, length);
  CHECK(fcntl(fd, command, &wanted) == 0);
}

/// Who stands in the way of a write lock on these bytes. A process of its own looks: who closes the file again releases
/// the locks that he has on it.
void expect_lock(const char* name, off_t start, off_t length, short type, off_t found_start, off_t found_length,
                 pid_t holder) {
  if (const pid_t observer = fork(); observer != 0) return probe::expect_child_passed(observer);
  const int fd = open_in_directory(name, O_RDWR);
  struct flock found = range(F_WRLCK, start, length);
  CHECK(fcntl(fd, F_OFD_GETLK, &found) == 0);
  CHECK_EQUAL(found.l_type, type);
  if (type != F_UNLCK) {
    CHECK_EQUAL(found.l_start, found_start);
    CHECK_EQUAL(found.l_len, found_length);
    CHECK_EQUAL(found.l_pid, holder);
  }
  _exit(0);
}

bool is_free(const char* name, int operation) {
  const int fd = open_in_directory(name, O_RDONLY);
  const int result = flock(fd, operation | LOCK_NB);
  CHECK(result == 0 || errno == EWOULDBLOCK);
  close(fd);
  return result == 0;
}

/// Starts a process, and waits until it is set up.
template <typename Body>
pid_t start(Body body) {
  const int before = __atomic_load_n(&shared->ready, __ATOMIC_ACQUIRE);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    body();
    _exit(0);
  }
  probe::await(&shared->ready, before + 1);
  return child;
}
void set_up() { __atomic_add_fetch(&shared->ready, 1, __ATOMIC_ACQ_REL); }

char stack[64 << 10];
int in_shared_table(void* fd) {
  lock(*static_cast<int*>(fd), F_SETLK, F_WRLCK, 900, 10);
  set_up();
  for (;;) pause();
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  umask(0);
  shared = probe::shared_memory<Shared>();

  // One process with several ranges, through two open files and duplicates of one of them.
  const int first = open_in_directory("posix", O_RDWR), second = open_in_directory("posix", O_RDWR);
  const int third = dup(first);
  CHECK(third >= 0);
  lock(first, F_SETLK, F_WRLCK, 0, 10);
  lock(second, F_SETLK, F_RDLCK, 20, 10);
  lock(third, F_SETLK, F_WRLCK, 1000, 0);

  // Of another user, who has inherited the descriptors but not the locks.
  const pid_t other = start([&] {
    CHECK(setresgid(12345, 12345, 12345) == 0 && setresuid(12345, 12345, 12345) == 0);
    lock(first, F_SETLK, F_RDLCK, 20, 5);
    lock(second, F_SETLK, F_WRLCK, 500, 100);
    const int own = open_in_directory("of-another-user", O_RDWR);
    lock(own, F_SETLK, F_WRLCK, 7, 1);
    CHECK(flock(own, LOCK_EX) == 0);
    set_up();
    for (;;) pause();
  });

  // Of two who share a table: the kernel says who took it, and both can let go of it.
  const int in_common = open_in_directory("table", O_RDWR);
  const int ready_before = shared->ready;
  int passed = in_common;
  const pid_t sharing = clone(in_shared_table, stack + sizeof stack, CLONE_FILES | CLONE_VM | SIGCHLD, &passed);
  CHECK(sharing > 0);
  probe::await(&shared->ready, ready_before + 1);

  // An open file that a child has inherited, and its lock with it.
  const int inherited = open_in_directory("flock", O_RDONLY);
  CHECK(flock(inherited, LOCK_EX) == 0);
  const pid_t heir = start([&] {
    set_up();
    probe::await(&shared->check, 1);
    CHECK(flock(inherited, LOCK_UN) == 0);
    shared->checked = 1;
    for (;;) pause();
  });
  const int reader = open_in_directory("shared-flock", O_RDONLY);
  CHECK(flock(reader, LOCK_SH) == 0);

  const int ofd = open_in_directory("ofd", O_RDWR), same = dup(ofd);
  lock(ofd, F_OFD_SETLK, F_WRLCK, 100, 50);
  lock(same, F_OFD_SETLK, F_RDLCK, 200, 0);

  // Somebody waits for what we have, in the kernel.
  const pid_t waiting = start([&] {
    set_up();
    const int fd = open_in_directory("posix", O_RDWR);
    lock(fd, F_SETLKW, F_WRLCK, 0, 1);
    shared->checked = 2;
    for (;;) pause();
  });

  const int directory = open(probe::directory, O_RDONLY | O_DIRECTORY);
  CHECK(directory >= 0 && flock(directory, LOCK_EX) == 0);
  char path[4096];
  snprintf(path, sizeof path, "%s/fifo", probe::directory);
  CHECK(mkfifo(path, 0666) == 0);
  const int fifo = open(path, O_RDWR);
  CHECK(fifo >= 0 && flock(fifo, LOCK_SH) == 0);
  const int ghost = open_in_directory("ghost", O_RDWR), ghost_too = open_in_directory("ghost", O_RDWR);
  snprintf(path, sizeof path, "%s/ghost", probe::directory);
  CHECK(unlink(path) == 0);
  lock(ghost, F_SETLK, F_WRLCK, 3, 4);
  CHECK(flock(ghost, LOCK_EX) == 0);

  probe::ready();
  probe::wait_for_go();

  const pid_t self = getpid();
  expect_lock("posix", 0, 20, F_WRLCK, 0, 10, self);
  expect_lock("posix", 25, 100, F_RDLCK, 20, 10, self);
  expect_lock("posix", 30, 400, F_UNLCK, 0, 0, 0);
  expect_lock("posix", 510, 1, F_WRLCK, 500, 100, other);
  expect_lock("posix", 999, 0, F_WRLCK, 1000, 0, self);
  expect_lock("of-another-user", 0, 0, F_WRLCK, 7, 1, other);
  CHECK(!is_free("of-another-user", LOCK_SH));
  expect_lock("table", 0, 0, F_WRLCK, 900, 10, sharing);
  lock(in_common, F_SETLK, F_UNLCK, 0, 0);
  expect_lock("table", 0, 0, F_UNLCK, 0, 0, 0);

  CHECK(!is_free("flock", LOCK_SH));
  shared->check = 1;
  probe::await(&shared->checked, 1);
  CHECK(is_free("flock", LOCK_EX));
  CHECK(is_free("shared-flock", LOCK_SH));
  CHECK(!is_free("shared-flock", LOCK_EX));

  expect_lock("ofd", 0, 160, F_WRLCK, 100, 50, -1);
  expect_lock("ofd", 160, 0, F_RDLCK, 200, 0, -1);
  lock(same, F_OFD_SETLK, F_UNLCK, 100, 50);
  expect_lock("ofd", 0, 160, F_UNLCK, 0, 0, 0);

  const int again = open(probe::directory, O_RDONLY | O_DIRECTORY);
  CHECK(flock(again, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK);
  snprintf(path, sizeof path, "%s/fifo", probe::directory);
  const int fifo_again = open(path, O_RDWR);
  CHECK(flock(fifo_again, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK);
  struct flock on_ghost = range(F_WRLCK, 0, 0);
  CHECK(fcntl(ghost_too, F_OFD_GETLK, &on_ghost) == 0);
  CHECK_EQUAL(on_ghost.l_type, F_WRLCK);
  CHECK_EQUAL(on_ghost.l_start, 3);
  CHECK_EQUAL(on_ghost.l_pid, self);
  CHECK(flock(ghost_too, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK);

  // Any descriptor of the file that is closed releases what this process has on it, and nothing else.
  CHECK(close(second) == 0);
  probe::await(&shared->checked, 2);
  expect_lock("posix", 20, 1, F_RDLCK, 20, 5, other);
  for (const pid_t child : {other, sharing, heir, waiting}) {
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, nullptr, 0) == child);
  }
  return probe::passed();
}
