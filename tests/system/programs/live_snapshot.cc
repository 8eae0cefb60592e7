// Threads change private, shared and fork-shy memory at full speed, so that a sum over all of it stays what it was: an
// image that mixes two instants breaks it. tests/system/live takes snapshots of it while it works.
#include <pthread.h>

#include "probe.h"

namespace {

constexpr int thread_count = 3;
constexpr size_t words_of_thread = size_t{8} << 20;  // 64 MiB private and as many shared
constexpr size_t words_not_forked = size_t{1} << 18;

struct Worker {
  uint64_t *here, *there, *not_forked;
  uint64_t random = 0, steps = 0;
  pthread_t thread;
};
Worker workers[thread_count];
volatile int started = 0;

uint64_t* memory_of(size_t words, int flags) {
  void* memory = mmap(nullptr, words * sizeof(uint64_t), PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED);
  return static_cast<uint64_t*>(memory);
}

uint64_t next(uint64_t& state) {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return state;
}

/// What one place gains another loses; they are far from each other, and in different kinds of memory.
void step(Worker& worker) {
  const uint64_t random = next(worker.random);
  uint64_t& a = worker.here[random % words_of_thread];
  uint64_t& b = worker.there[(random >> 20) % words_of_thread];
  uint64_t& c = worker.not_forked[(random >> 40) % words_not_forked];
  __atomic_store_n(&a, a + 3 * random, __ATOMIC_RELAXED);
  __atomic_store_n(&b, b - 2 * random, __ATOMIC_RELAXED);
  __atomic_store_n(&c, c - random, __ATOMIC_RELAXED);
  ++worker.steps;
}

uint64_t sum(const uint64_t* words, size_t count) {
  uint64_t total = 0;
  for (size_t i = 0; i < count; ++i) total += words[i];
  return total;
}

void check(const Worker& worker) {
  const uint64_t total =
      sum(worker.here, words_of_thread) + sum(worker.there, words_of_thread) + sum(worker.not_forked, words_not_forked);
  if (total != 0) {
    probe::failed("after %llu steps the sum is off by %#llx: the memory is not of one instant",
                  static_cast<unsigned long long>(worker.steps), static_cast<unsigned long long>(total));
  }
}

void* work(void* argument) {
  auto& worker = *static_cast<Worker*>(argument);
  for (size_t i = 0; i < words_of_thread; i += 512) worker.here[i] = i, worker.there[i] = 0 - i;
  for (size_t i = 0; i + 1 < words_not_forked; i += 512) worker.not_forked[i] = 1 + i, worker.not_forked[i + 1] = ~i;
  __atomic_add_fetch(&started, 1, __ATOMIC_RELEASE);
  while (!probe::go_has_come()) {
    for (int i = 0; i < 100'000; ++i) step(worker);
  }
  check(worker);
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  for (int i = 0; i < thread_count; ++i) {
    auto& worker = workers[i];
    worker.here = memory_of(words_of_thread, MAP_PRIVATE);
    worker.there = memory_of(words_of_thread, MAP_SHARED);
    worker.not_forked = memory_of(words_not_forked, MAP_PRIVATE);
    const int advice = i % 2 == 0 ? MADV_DONTFORK : MADV_WIPEONFORK;
    CHECK(madvise(worker.not_forked, words_not_forked * sizeof(uint64_t), advice) == 0);
    worker.random = 88172645463325252u + static_cast<uint64_t>(i);
    CHECK(pthread_create(&worker.thread, nullptr, work, &worker) == 0);
  }
  probe::await(&started, thread_count);
  probe::ready();
  for (auto& worker : workers) CHECK(pthread_join(worker.thread, nullptr) == 0);
  return probe::passed();
}
