// Policies, priorities, nice values, affinity and I/O priority, per thread.
// ROOT: runs in real time
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>

#include "probe.h"

namespace {

struct Attributes {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;
};

Attributes attributes() {
  Attributes now = {};
  CHECK(syscall(SYS_sched_getattr, 0, &now, sizeof now, 0) == 0);
  now.runtime = 0;  // the slice of ordinary tasks is the kernel's business
  return now;
}

int io_priority() { return static_cast<int>(syscall(SYS_ioprio_get, 1, 0)); }

volatile int started = 0;

void* thread(void* argument) {
  const long which = reinterpret_cast<long>(argument);
  if (which == 0) {
    const sched_param param = {17};
    CHECK(sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &param) == 0);
  } else if (which == 1) {
    const sched_param param = {0};
    CHECK(sched_setscheduler(0, SCHED_BATCH, &param) == 0);
    CHECK(setpriority(PRIO_PROCESS, gettid(), 7) == 0);
    CHECK(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6) == 0);
  } else {
    cpu_set_t first;
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    CHECK(sched_setaffinity(0, sizeof first, &first) == 0);
    CHECK(setpriority(PRIO_PROCESS, gettid(), -5) == 0);
  }
  const Attributes before = attributes();
  const int io_before = io_priority();
  cpu_set_t cpus_before, cpus;
  CHECK(sched_getaffinity(0, sizeof cpus_before, &cpus_before) == 0);
  __atomic_add_fetch(&started, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  const Attributes after = attributes();
  CHECK_EQUAL(after.policy, before.policy);
  CHECK_EQUAL(after.flags, before.flags);
  CHECK_EQUAL(after.nice, before.nice);
  CHECK_EQUAL(after.priority, before.priority);
  CHECK_EQUAL(io_priority(), io_before);
  CHECK(sched_getaffinity(0, sizeof cpus, &cpus) == 0 && CPU_EQUAL(&cpus, &cpus_before));
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  pthread_t threads[3];
  for (long i = 0; i < 3; ++i) CHECK(pthread_create(&threads[i], nullptr, thread, reinterpret_cast<void*>(i)) == 0);
  probe::await(&started, 3);
  probe::ready();
  probe::wait_for_go();
  for (auto& other : threads) CHECK(pthread_join(other, nullptr) == 0);
  return probe::passed();
}
