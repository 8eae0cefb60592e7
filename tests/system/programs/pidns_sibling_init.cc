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

#include "probe.h"

namespace {

using probe::start;

constexpr int steady = 13;  // processes that check themselves, the root apart

enum Known { outer, inner, plain, in_session, deep, orphan, ended, all_known };
struct Board {
  volatile int settled, level;     // how many ids the root has
  volatile pid_t pids[all_known];  // as the root calls them
  volatile bool checked, may_end;  // by the root; all but the inits of `outer` and `inner`
};
Board* board = nullptr;

/// The line "NSpid:" of /proc/PID/status: an id in each namespace, behind a tabulator. Empty: there is no such process.
struct Line {
  char text[128];
};
Line read_line(const char* process = "self") {
  char path[64];
  snprintf(path, sizeof path, "/proc/%s/status", process);
  Line line{};
  FILE* status = fopen(path, "r");
  if (status == nullptr) return line;
  while (strncmp(line.text, "NSpid:", 6) != 0) {
    if (fgets(line.text, sizeof line.text, status) == nullptr) line.text[0] = 0;
    if (line.text[0] == 0) break;
  }
  fclose(status);
  return line;
}
/// From id number `level` on, counted from 1.
const char* ids_from(const Line& line, int level) {
  const char* at = line.text;
  for (; level > 0; --level) at = strchr(at, '\t') + 1;
  return at;
}
int count_ids(const Line& line) {
  int count = 0;
  for (const char* at = line.text; *at != 0; ++at) count += *at == '\t';
  return count;
}

struct Ids {
  pid_t pid, parent, session, group;
  Line line;
};
Ids look() { return {getpid(), getppid(), getsid(0), getpgrp(), read_line()}; }
void expect(const Ids& before) {
  const Ids now = look();
  CHECK_EQUAL(now.pid, before.pid);
  CHECK_EQUAL(now.parent, before.parent);
  CHECK_EQUAL(now.session, before.session);
  CHECK_EQUAL(now.group, before.group);
  // Those in namespaces around the root's are no part of it.
  const char *ids = ids_from(now.line, board->level), *expected = ids_from(before.line, board->level);
  if (strcmp(ids, expected) != 0) probe::failed("%s is now %s", expected, ids);
}
void stay() {
  const Ids before = look();
  __atomic_add_fetch(&board->settled, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  expect(before);
  while (!board->checked) usleep(1000);
}
void make_known(Known which) { board->pids[which] = atoi(ids_from(read_line(), board->level)); }
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
    const Line line = read_line(entry->d_name);
    if (count_ids(line) <= board->level || atoi(ids_from(line, board->level)) != known(which)) continue;
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
  board->level = count_ids(read_line());
  start([] { init(outer); }, CLONE_NEWPID);
  known(inner);
  start(parent), start(subreaper), start(with_ended);
  probe::await(&board->settled, steady);
  expect_all_inside();
  Ids before = look();
  probe::ready();
  probe::wait_for_go();
  before.parent = getppid();  // outside of the tree
  expect(before);
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
