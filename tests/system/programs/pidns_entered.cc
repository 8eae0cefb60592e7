// Processes that have come into pid namespaces from outside (setns, then fork), as `nsenter` and `docker exec` bring
// them: their parents stay outside. One with a child of its own, in a group that is led from outside; one that leads a
// session inside; an orphan, in a session from outside, that has come to the namespace's init; one two levels down; and
// a thread whose children would be born inside, while those of its process's first thread would not. A namespace that
// nobody has been born in yet (unshare), and inits that signals have ended: a kill from outside, and a fault.
// FAIL_RESTORE
// ROOT: makes pid namespaces
#include <pthread.h>
#include <sched.h>

#include <initializer_list>

#include "probe.h"

namespace {

constexpr int steady = 13;  // processes that check themselves, the root apart

struct Board {
  volatile int settled, threads;
  volatile pid_t outer, inner;  // the inits, as the root calls them
  volatile bool may_end;
};
Board* board = nullptr;
int owned[2];  // a pipe, of the inner init

using probe::start;

struct Ids {
  pid_t pid, parent, session, group;
};
Ids look() { return {getpid(), getppid(), getsid(0), getpgrp()}; }

void stay() {
  const Ids before = look();
  __atomic_add_fetch(&board->settled, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  const Ids now = look();
  CHECK_EQUAL(now.pid, before.pid);
  CHECK_EQUAL(now.parent, before.parent);
  CHECK_EQUAL(now.session, before.session);
  CHECK_EQUAL(now.group, before.group);
}

void reap_all() {
  int status = 0;
  while (wait(&status) > 0) CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/// The first process of each namespace goes last.
void init(volatile pid_t* known) {
  CHECK_EQUAL(getpid(), 1);
  CHECK(setsid() == 1);
  if (known == &board->outer) start([] { init(&board->inner); }, CLONE_NEWPID);
  if (known == &board->inner) CHECK(fcntl(owned[0], F_SETOWN, 1) == 0);
  stay();
  while (!board->may_end) usleep(1000);
  reap_all();
}

void enter(pid_t target) {
  const int fd = static_cast<int>(syscall(SYS_pidfd_open, target, 0));
  CHECK(fd >= 0 && setns(fd, CLONE_NEWPID) == 0);
  close(fd);
}

/// Its children are born in the namespace only for a moment.
template <typename Body>
pid_t start_in(pid_t init, Body body) {
  enter(init);
  const pid_t child = start(body);
  enter(getpid());
  return child;
}

/// Leads a group; who comes from it into the namespace reads 0 for that.
void enterer() {
  CHECK(setpgid(0, 0) == 0);
  start_in(board->outer, [] {
    CHECK(getppid() == 0 && getpgrp() == 0 && getpid() > 1);
    start([] {
      CHECK(getppid() > 1 && getpgrp() == 0);
      stay();
    });
    stay();
    reap_all();
  });
  start_in(board->outer, [] {
    CHECK(setsid() == getpid());
    stay();
  });
  // Straight to the second level.
  const pid_t child = start_in(board->inner, [] {
    CHECK_EQUAL(getppid(), 0);
    stay();
  });
  CHECK(child > 0);
  stay();
  reap_all();
}

/// Leads a session from which an orphan has come to the namespace's init.
void session_leader() {
  CHECK(setsid() == getpid());
  const pid_t middle = start_in(board->outer, [] {
    start([] {
      while (getppid() != 1) usleep(1000);
      CHECK_EQUAL(getsid(0), 0);
      stay();
    });
  });
  probe::expect_child_passed(middle);
  stay();
}

void* thread_inside(void*) {
  enter(board->outer);
  __atomic_add_fetch(&board->threads, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  const pid_t child = fork();
  if (child == 0) _exit(getppid() == 0 ? 0 : 1);
  CHECK(child > 0);
  probe::expect_child_passed(child);
  return nullptr;
}

void with_thread() {
  pthread_t thread;
  CHECK(pthread_create(&thread, nullptr, thread_inside, nullptr) == 0);
  probe::await(&board->threads, 1);
  stay();
  CHECK(pthread_join(thread, nullptr) == 0);
  const pid_t child = fork(), parent = getpid();
  if (child == 0) _exit(getppid() == parent || getppid() != 0 ? 0 : 1);
  probe::expect_child_passed(child);
}

/// All its children are born inside, and it is a process like any other.
void stays_entered() {
  enter(board->inner);
  stay();
  const pid_t child = fork();
  if (child == 0) _exit(getppid() == 0 && getpid() > 1 ? 0 : 1);
  CHECK(child > 0);
  probe::expect_child_passed(child);
}

/// Its next child begins the namespace.
void stays_unshared() {
  CHECK(unshare(CLONE_NEWPID) == 0);
  stay();
  const pid_t child = fork();
  if (child == 0) _exit(getpid() == 1 && getppid() == 0 ? 0 : 1);
  CHECK(child > 0);
  probe::expect_child_passed(child);
}

/// Zombies of two namespaces that are gone.
struct EndedInits {
  pid_t killed = start([] { pause(); }, CLONE_NEWPID);
  pid_t faulty = start([] { __builtin_trap(); }, CLONE_NEWPID);
  EndedInits() {
    CHECK(kill(killed, SIGKILL) == 0);
    siginfo_t info;
    for (const pid_t pid : {killed, faulty})
      CHECK(waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT) == 0);
  }
  void expect() const {
    expect_signal(killed, SIGKILL);
    expect_signal(faulty, SIGILL);
  }
  static void expect_signal(pid_t pid, int signal) {
    int status = 0;
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
    CHECK_EQUAL(WTERMSIG(status), signal);
  }
};

void with_ended_inits() {
  const EndedInits inits;
  stay();
  inits.expect();
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  board = probe::shared_memory<Board>();
  CHECK(pipe(owned) == 0);
  board->outer = start([] { init(&board->outer); }, CLONE_NEWPID);
  probe::await(&board->settled, 2);
  // What the inner init is called out here: the kernel translates the owner.
  board->inner = fcntl(owned[0], F_GETOWN);
  CHECK(board->inner > 0);
  const Ids before = look();
  start(enterer), start(session_leader), start(with_thread), start(stays_entered);
  start(stays_unshared), start(with_ended_inits);
  probe::await(&board->settled, steady);
  probe::ready();
  probe::wait_for_go();
  const Ids now = look();
  CHECK_EQUAL(now.pid, before.pid);
  CHECK_EQUAL(now.session, before.session);
  CHECK_EQUAL(now.group, before.group);
  for (int i = 0; i < 6; ++i) {
    int status = 0;
    CHECK(wait(&status) > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  board->may_end = true;
  reap_all();
  return probe::passed();
}
