// Robust futexes, restartable sequences and clear_child_tid still work.
// LAZY
#include <pthread.h>
#include <sys/rseq.h>

#include "probe.h"

namespace {

pthread_mutex_t robust;
volatile int started = 0;

void* owner(void*) {
  CHECK(pthread_mutex_lock(&robust) == 0);
  __atomic_store_n(&started, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  return nullptr;  // ends without unlocking: the kernel walks the robust list
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  CHECK(pthread_mutex_init(&robust, &attributes) == 0);
  pthread_t thread;
  CHECK(pthread_create(&thread, nullptr, owner, nullptr) == 0);
  probe::await(&started, 1);
  const bool has_rseq = __rseq_size > 0;
  auto* area = reinterpret_cast<volatile struct rseq*>(static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset);
  if (has_rseq) CHECK(static_cast<int>(area->cpu_id) >= 0);
  probe::ready();
  probe::wait_for_go();
  // pthread_join waits for the kernel to clear the tid: clear_child_tid.
  CHECK(pthread_join(thread, nullptr) == 0);
  CHECK_EQUAL(pthread_mutex_lock(&robust), EOWNERDEAD);
  if (has_rseq) {
    // The registration is alive: the kernel refuses a second one with EBUSY and keeps cpu_id current.
    CHECK(syscall(SYS_rseq, area, 32, 0, RSEQ_SIG) < 0 && errno == EBUSY);
    CHECK(static_cast<int>(area->cpu_id) >= 0 && static_cast<int>(area->cpu_id) < 4096);
  }
  return probe::passed();
}
