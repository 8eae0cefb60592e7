// Threads come back with their tids, names and thread-local storage.
// FAIL_RESTORE
// FILTERS
// LAZY
#include <pthread.h>
#include <sys/prctl.h>

#include "probe.h"

namespace {

constexpr int thread_count = 8;
thread_local long local_value = 0;
volatile int started = 0;

void* run(void* argument) {
  const long index = reinterpret_cast<long>(argument);
  const pid_t tid = gettid();
  char name[16], seen[16];
  snprintf(name, sizeof name, "worker-%ld", index);
  pthread_setname_np(pthread_self(), name);
  local_value = 1000 + index;
  __atomic_add_fetch(&started, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  CHECK_EQUAL(gettid(), tid);
  CHECK_EQUAL(local_value, 1000 + index);
  CHECK(prctl(PR_GET_NAME, seen) == 0);
  CHECK(strcmp(seen, name) == 0);
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  pthread_t threads[thread_count];
  for (long i = 0; i < thread_count; ++i)
    CHECK(pthread_create(&threads[i], nullptr, run, reinterpret_cast<void*>(i)) == 0);
  probe::await(&started, thread_count);
  const pid_t pid = getpid();
  probe::ready();
  probe::wait_for_go();
  for (auto thread : threads) CHECK(pthread_join(thread, nullptr) == 0);
  CHECK_EQUAL(getpid(), pid);
  return probe::passed();
}
