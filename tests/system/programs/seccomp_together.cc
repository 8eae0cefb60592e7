// Threads that got their seccomp filter together (TSYNC) can get another one together: in a process that is whole, and
// in a child whose first thread has ended.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>

#include "probe.h"

namespace {

struct Board {
  volatile int child_ready;
};
Board* board;
volatile int filters = 0, seen = 0;

/// From here on the call `number` of all threads fails with `error`.
void forbid(int number, int error) {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(number), 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {4, code};
  // Otherwise it is the id of a thread whose filters are not those that the caller's begin with.
  CHECK_EQUAL(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program), 0);
}

void check_filters(int count) {
  CHECK(syscall(SYS_sync) == -1 && errno == 99);
  const long parent = syscall(SYS_getppid);
  CHECK(count == 1 ? parent >= 0 : parent == -1 && errno == 98);
}

void* follow(void*) {
  for (int count = 1; count <= 2; ++count) {
    probe::await(&filters, count);
    check_filters(count);
    __atomic_store_n(&seen, count, __ATOMIC_RELEASE);
  }
  return nullptr;
}

void get_filter(int number, int error, int count) {
  forbid(number, error);
  __atomic_store_n(&filters, count, __ATOMIC_RELEASE);
  probe::await(&seen, count);
}

void* lead_child(void*) {
  probe::await_end_of_first_thread();
  get_filter(SYS_sync, 99, 1);
  __atomic_store_n(&board->child_ready, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  get_filter(SYS_getppid, 98, 2);
  _exit(0);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  board = probe::shared_memory<Board>();
  CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  const pid_t child = fork();
  pthread_t thread;
  CHECK(pthread_create(&thread, nullptr, follow, nullptr) == 0);
  if (child == 0) {
    CHECK(pthread_create(&thread, nullptr, lead_child, nullptr) == 0);
    syscall(SYS_exit, 0);
  }
  get_filter(SYS_sync, 99, 1);
  probe::await(&board->child_ready, 1);
  probe::ready();
  probe::wait_for_go();
  get_filter(SYS_getppid, 98, 2);
  probe::expect_child_passed(child);
  CHECK(pthread_join(thread, nullptr) == 0);
  return probe::passed();
}
