// Children that belong to one thread of their parent: its end, not that of the process, sends them their parent-death
// signal, and only it waits for them with __WNOTHREAD. One is the child of a thread that is not the first, one of a
// process whose first thread has ended, and one has come to that process as an orphan, from another session.
// FAIL_RESTORE
#include <pthread.h>
#include <sys/prctl.h>

#include "probe.h"

namespace {

constexpr int all_children = 3, all_checks = 1 + all_children;  // those of the first thread, too

struct Board {
  volatile int settled, checked;
  volatile pid_t of_thread, of_rest, orphan;
  volatile int got_signal;
};
Board* board = nullptr;

/// Its death signal comes when it is to come, and not before.
void child_of_thread() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  CHECK(sigprocmask(SIG_BLOCK, &set, nullptr) == 0);
  CHECK(prctl(PR_SET_PDEATHSIG, SIGUSR1) == 0);
  const pid_t parent = getppid();
  __atomic_add_fetch(&board->settled, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  CHECK_EQUAL(getppid(), parent);
  int signal = 0;
  CHECK(prctl(PR_GET_PDEATHSIG, &signal) == 0);
  CHECK_EQUAL(signal, SIGUSR1);
  sigset_t pending;
  CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGUSR1) == 0);
  __atomic_add_fetch(&board->checked, 1, __ATOMIC_RELEASE);
  const timespec patience = {20, 0};
  CHECK_EQUAL(sigtimedwait(&set, nullptr, &patience), SIGUSR1);
  __atomic_add_fetch(&board->got_signal, 1, __ATOMIC_RELEASE);
}

pid_t start_child(volatile pid_t* known) { return *known = probe::start(child_of_thread); }

bool is_child_of_this_thread(pid_t child) {
  siginfo_t info;
  return waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOHANG | WNOWAIT | __WNOTHREAD) == 0;
}

void* worker(void*) {
  start_child(&board->of_thread);
  probe::wait_for_go();
  CHECK(is_child_of_this_thread(board->of_thread));
  probe::await(&board->checked, all_checks);
  return nullptr;
}

// ---- a process whose first thread has ended

/// Its session is led by one that has ended.
void adopt_orphan() {
  CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
  probe::expect_child_passed(probe::start([] {
    CHECK(setsid() == getpid());
    board->orphan = probe::start([middle = getpid()] {
      while (getppid() == middle) usleep(1000);
      child_of_thread();
    });
  }));
}

void* rest(void*) {
  probe::await_end_of_first_thread();
  start_child(&board->of_rest);
  adopt_orphan();
  __atomic_add_fetch(&board->settled, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  CHECK(is_child_of_this_thread(board->of_rest));
  CHECK(is_child_of_this_thread(board->orphan));
  probe::await(&board->checked, all_checks);
  syscall(SYS_exit_group, 0);
  return nullptr;
}

void headless() {
  pthread_t thread;
  CHECK(pthread_create(&thread, nullptr, rest, nullptr) == 0);
  syscall(SYS_exit, 0);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  board = probe::shared_memory<Board>();
  pthread_t thread;
  CHECK(pthread_create(&thread, nullptr, worker, nullptr) == 0);
  probe::await(&board->settled, 1);
  const pid_t other = probe::start(headless);
  probe::await(&board->settled, 1 + all_children);
  CHECK(!is_child_of_this_thread(board->of_thread));
  probe::ready();
  probe::wait_for_go();
  CHECK(!is_child_of_this_thread(board->of_thread));
  __atomic_add_fetch(&board->checked, 1, __ATOMIC_RELEASE);
  CHECK(pthread_join(thread, nullptr) == 0);
  probe::await(&board->got_signal, all_children);
  probe::expect_child_passed(board->of_thread);
  probe::expect_child_passed(other);
  return probe::passed();
}
