// Chains of seccomp filters, one thread with more than the other; they filter as before.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>

#include "probe.h"

namespace {

volatile int started = 0;

/// From here on this thread's call `number` fails with `error`.
void forbid(int number, int error) {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(number), 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {4, code};
  CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0);
}

void* thread(void*) {
  forbid(SYS_getppid, 123);
  __atomic_store_n(&started, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  errno = 0;
  CHECK(syscall(SYS_getppid) == -1 && errno == 123);
  CHECK(syscall(SYS_sync) == -1 && errno == 99);
  CHECK(syscall(SYS_getuid) == -1 && errno == 98);
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  forbid(SYS_sync, 99);
  forbid(SYS_getuid, 98);
  pthread_t other;
  CHECK(pthread_create(&other, nullptr, thread, nullptr) == 0);
  probe::await(&started, 1);
  probe::ready();
  probe::wait_for_go();
  CHECK(syscall(SYS_sync) == -1 && errno == 99);
  CHECK(syscall(SYS_getuid) == -1 && errno == 98);
  CHECK(syscall(SYS_getppid) >= 0);
  CHECK(pthread_join(other, nullptr) == 0);
  CHECK_EQUAL(prctl(PR_GET_SECCOMP, 0, 0, 0, 0), 2);
  return probe::passed();
}
