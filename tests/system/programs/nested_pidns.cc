// Pid namespaces in the tree: two siblings, one of them with another inside, and one that a process has unshared for
// its children. In them sessions, groups, threads, a zombie, an orphan that came to a namespace's init, pending
// signals, timers, owners of descriptors, and pipes between namespaces that cannot name each other.
// FAIL_RESTORE
// ROOT: makes pid namespaces
// LAZY
#include <pthread.h>
#include <sched.h>

#include "nested_ids.h"
#include "probe.h"

namespace {

constexpr int steady = 11;  // processes that check themselves, the root apart

struct Board {
  volatile int settled, threads;
  volatile pid_t member;  // by its number in namespace A
  volatile bool tried;
};
Board* board = nullptr;
int between[2], owned[2];  // pipes: between A and B, not the root's; owned by the root

using nested_ids::check_same;
using nested_ids::Ids;
using nested_ids::look;

void stay() {
  const Ids before = look();
  __atomic_add_fetch(&board->settled, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  check_same(before);
}

using probe::start;

void reap_all() {
  int status = 0;
  while (wait(&status) > 0) CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 7));
}

void* thread_life(void*) {
  const pid_t tid = gettid();
  __atomic_add_fetch(&board->threads, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  CHECK_EQUAL(gettid(), tid);
  // The timer that the first thread made for us.
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN);
  const timespec patience = {20, 0};
  CHECK_EQUAL(sigtimedwait(&set, nullptr, &patience), SIGRTMIN);
  return nullptr;
}

/// A thread, a timer that notifies it, a group that it leads.
void with_thread() {
  CHECK(setpgid(0, 0) == 0);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  const int before = board->threads;
  pthread_t thread;
  volatile static pid_t tid = 0;
  CHECK(pthread_create(
            &thread, nullptr,
            [](void* arg) -> void* {
              tid = gettid();
              return thread_life(arg);
            },
            nullptr) == 0);
  while (tid == 0 || board->threads == before) usleep(1000);
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = SIGRTMIN;
  event._sigev_un._tid = tid;
  timer_t timer;
  CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
  const itimerspec later = {{0, 0}, {10'000, 0}}, now = {{0, 0}, {0, 1}};
  CHECK(timer_settime(timer, 0, &later, nullptr) == 0);
  board->member = getpid();
  stay();
  CHECK(timer_settime(timer, 0, &now, nullptr) == 0);
  CHECK(pthread_join(thread, nullptr) == 0);
}

/// A signal from a neighbour waits for it; its sender is known by the number in this namespace.
void with_pending_signal() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  CHECK(sigprocmask(SIG_BLOCK, &set, nullptr) == 0);
  const pid_t self = getpid();
  const pid_t sender = start([&] {
    CHECK(kill(self, SIGUSR1) == 0);
    stay();
  });
  sigset_t pending;
  do sigpending(&pending);
  while (sigismember(&pending, SIGUSR1) == 0);
  stay();
  siginfo_t info;
  CHECK_EQUAL(sigwaitinfo(&set, &info), SIGUSR1);
  CHECK_EQUAL(info.si_pid, sender);
  reap_all();
}

/// Its session's leader has ended: it has come to the namespace's init.
void orphan() {
  const pid_t middle = start([] {
    CHECK(setsid() == getpid());
    const pid_t leader = getpid();
    start([leader] {
      while (getppid() != 1) usleep(1000);
      CHECK_EQUAL(getsid(0), leader);
      stay();
    });
  });
  probe::expect_child_passed(middle);
}

void inner_init() {
  CHECK_EQUAL(getpid(), 1);
  CHECK_EQUAL(getsid(0), 0);  // led from outside
  start([] {
    CHECK(setsid() == getpid());
    stay();
  });
  stay();
  reap_all();
}

/// Namespace A: a session of its own.
void first_init() {
  CHECK_EQUAL(getpid(), 1);
  CHECK_EQUAL(getppid(), 0);
  CHECK(setsid() == 1);
  close(between[0]);
  start(with_thread);
  while (board->member == 0) usleep(1000);
  start([] {
    CHECK(setpgid(0, board->member) == 0);
    stay();
  });
  start([] { _exit(7); });
  orphan();
  start(inner_init, CLONE_NEWPID);
  int own[2];
  CHECK(pipe(own) == 0 && fcntl(own[0], F_SETOWN, board->member) == 0);
  stay();
  CHECK_EQUAL(fcntl(own[0], F_GETOWN), board->member);
  CHECK(write(between[1], "x", 1) == 1);
  reap_all();
}

/// Namespace B: in the root's session and group, which read 0 in here.
void second_init() {
  CHECK_EQUAL(getsid(0), 0);
  CHECK_EQUAL(getpgrp(), 0);
  close(between[1]);
  start(with_pending_signal);
  stay();
  CHECK_EQUAL(getpgrp(), 0);
  CHECK_EQUAL(fcntl(owned[0], F_GETOWN), 0);  // outside
  char byte = 0;
  CHECK(read(between[0], &byte, 1) == 1 && byte == 'x');
  reap_all();
}

/// Stays outside itself.
void unsharer() {
  CHECK(setpgid(0, 0) == 0);
  CHECK(unshare(CLONE_NEWPID) == 0);
  start([] {
    CHECK_EQUAL(getpid(), 1);
    CHECK_EQUAL(getpgrp(), 0);
    stay();
    while (!board->tried) usleep(1000);
  });
  stay();
  // Another child is born in there.
  const pid_t child = fork();
  if (child == 0) _exit(getpid() > 1 && getppid() == 0 ? 0 : 1);
  CHECK(child > 0);
  probe::expect_child_passed(child);
  board->tried = true;
  reap_all();
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  board = probe::shared_memory<Board>();
  CHECK(pipe(between) == 0 && pipe(owned) == 0);
  CHECK(fcntl(owned[0], F_SETOWN, getpid()) == 0);
  Ids before = look();
  start(first_init, CLONE_NEWPID);
  start(second_init, CLONE_NEWPID);
  start(unsharer);
  close(between[0]), close(between[1]);
  probe::await(&board->settled, steady);
  probe::await(&board->threads, 1);
  probe::ready();
  probe::wait_for_go();
  before.parent = getppid();  // of the root: outside of the tree, and whoever restores
  check_same(before);
  CHECK_EQUAL(fcntl(owned[0], F_GETOWN), getpid());
  reap_all();
  return probe::passed();
}
