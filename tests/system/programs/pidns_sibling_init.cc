// Pid namespaces whose inits have parents two and more levels further out: a process that has come into a namespace by
// setns begins another there for a sibling of itself (CLONE_PARENT, CLONE_NEWPID). One with a child of its own, whose
// creator has ended; one in the session and group that its creator leads; one three levels further in than its parent;
// an orphan that has come to a subreaper; and one that has ended.
// FAIL_RESTORE
// ROOT: makes pid namespaces
#include <dirent.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

#include <utility>

#include "nested_ids.h"
#include "probe.h"

namespace {

using nested_ids::check_same;
using nested_ids::Ids;
using nested_ids::look;
using nested_ids::own_level;
using probe::start;

constexpr int steady = 13;  // processes that check themselves, the root apart

enum Known { outer, inner, plain, in_session, deep, orphan, ended, all_known };
struct Board {
  volatile int settled;
  volatile pid_t pids[all_known];  // as the root calls them
  volatile bool checked, may_end;  // by the root; all but the inits of `outer` and `inner`
};
Board* board = nullptr;

/// What a process that /proc shows, or we ourselves, are called on that level (nested_ids::own_level); 0: nothing.
pid_t id_on(size_t level, const char* process = "self") {
  char path[300], line[256] = "";
  snprintf(path, sizeof path, "/proc/%s/status", process);
  FILE* status = fopen(path, "r");
  if (status == nullptr) return 0;
  while (strncmp(line, "NSpid:", 6) != 0 && fgets(line, sizeof line, status) != nullptr) continue;
  fclose(status);
  if (strncmp(line, "NSpid:", 6) != 0) return 0;
  const char* at = line;
  for (; level > 0 && at != nullptr; --level) at = strchr(at + 1, '\t');
  return at == nullptr ? 0 : atoi(at + 1);
}

void stay() {
  const Ids before = look();
  __atomic_add_fetch(&board->settled, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  check_same(before);
  while (!board->checked) usleep(1000);
}
void make_known(Known which) { board->pids[which] = id_on(own_level); }
pid_t known(Known which) {
  while (board->pids[which] == 0) usleep(1000);
  return board->pids[which];
}
void reap_all() {
  int status = 0;
  while (wait(&status) > 0) CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/// The first process of each namespace goes last.
void init(Known which) {
  CHECK_EQUAL(getpid(), 1);
  make_known(which);
  if (which == outer) start([] { init(inner); }, CLONE_NEWPID);
  stay();
  while (!board->may_end) usleep(1000);
  reap_all();
}

/// A child of the caller in the namespace.
template <typename Life>
pid_t start_in(pid_t target, Life life) {
  const auto enter = [](pid_t pid) {
    const int fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
    CHECK(fd >= 0 && setns(fd, CLONE_NEWPID) == 0);
    close(fd);
  };
  enter(target);
  const pid_t child = start(life);
  enter(getpid());
  return child;
}
/// By a process that has come into the namespace: a sibling, which begins one below.
template <typename Life>
void begin_for_sibling(Known which, Life life) {
  start(
      [&] {
        CHECK_EQUAL(getpid(), 1);
        CHECK_EQUAL(getppid(), 0);
        make_known(which);
        life();
      },
      CLONE_PARENT | CLONE_NEWPID);
}

void with_child() {
  start(stay);
  stay();
  reap_all();
}

void parent() {
  const pid_t creator = start_in(known(outer), [] { begin_for_sibling(plain, with_child); });
  probe::expect_child_passed(creator);
  start_in(known(outer), [] {
    CHECK(setsid() == getpid());
    begin_for_sibling(in_session, [] {
      CHECK(getsid(0) == 0 && getpgrp() == 0);
      stay();
    });
    stay();
  });
  start_in(known(inner), [] {
    begin_for_sibling(deep, [] {
      CHECK(setsid() == 1);
      stay();
    });
    stay();
  });
  stay();
  reap_all();
}

/// The parent of the orphan and of its creator has ended: they have come here.
void subreaper() {
  CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
  const pid_t between = start([] {
    start_in(known(outer), [] {
      begin_for_sibling(orphan, [] { stay(); });
      stay();
    });
    known(orphan);
  });
  probe::expect_child_passed(between);
  stay();
  reap_all();
}

void with_ended() {
  const pid_t creator = start_in(known(inner), [] { begin_for_sibling(ended, [] { _exit(7); }); });
  probe::expect_child_passed(creator);
  siginfo_t info;
  CHECK(waitid(P_PID, static_cast<id_t>(known(ended)), &info, WEXITED | WNOWAIT) == 0);
  stay();
  int status = 0;
  CHECK(waitpid(known(ended), &status, 0) == known(ended) && WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

ino_t namespace_of(int fd) {
  struct stat about;
  CHECK(fd >= 0 && fstat(fd, &about) == 0);
  close(fd);
  return about.st_ino;
}
/// /proc may be that of a namespace around the root's, with other numbers.
int open_namespace(Known which) {
  DIR* all = opendir("/proc");
  CHECK(all != nullptr);
  int found = -1;
  while (const dirent* entry = readdir(all)) {
    if (found >= 0 || atoi(entry->d_name) == 0) continue;
    if (id_on(own_level, entry->d_name) != known(which) || id_on(own_level + 1, entry->d_name) == 0) continue;
    char path[300];
    snprintf(path, sizeof path, "/proc/%s/ns/pid", entry->d_name);
    found = open(path, O_RDONLY);
    // Somebody may have the same number in a namespace beside ours: of that the kernel does not tell us the parent.
    if (const int around = ioctl(found, NS_GET_PARENT); around >= 0)
      close(around);
    else if (found >= 0)
      close(std::exchange(found, -1));
  }
  closedir(all);
  return found;
}
void expect_inside(Known which, Known around) {
  const int own = open_namespace(which);
  CHECK(own >= 0);
  CHECK_EQUAL(namespace_of(ioctl(own, NS_GET_PARENT)), namespace_of(open_namespace(around)));
  close(own);
}
void expect_all_inside() {
  expect_inside(inner, outer);
  expect_inside(plain, outer);
  expect_inside(in_session, outer);
  expect_inside(deep, inner);
  expect_inside(orphan, outer);
  expect_inside(ended, inner);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  board = probe::shared_memory<Board>();
  look();  // for own_level
  start([] { init(outer); }, CLONE_NEWPID);
  known(inner);
  start(parent), start(subreaper), start(with_ended);
  probe::await(&board->settled, steady);
  expect_all_inside();
  Ids before = look();
  probe::ready();
  probe::wait_for_go();
  before.parent = getppid();  // outside of the tree
  check_same(before);
  expect_all_inside();
  board->checked = true;
  for (int i = 0; i < 3; ++i) {
    int status = 0;
    CHECK(wait(&status) > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  board->may_end = true;
  reap_all();
  return probe::passed();
}
