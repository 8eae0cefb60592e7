// A tree that computes something checkable all the time: threads and a child hash in lockstep with themselves and
// notice any register, page, lock or signal mask that is not as they left it. Ends when told, and says whether all was
// well. With --leader-ends before the directory the first thread ends as soon as the others are there.
#include <pthread.h>

#include "../system/programs/probe.h"

namespace {

constexpr int threads = 3;
constexpr size_t words = 1 << 14;

struct Board {
  volatile long rounds[threads + 1];
};
Board* board;
volatile int started = 0;
sigset_t blocked;

uint64_t mix(uint64_t value) {
  value ^= value >> 33;
  value *= 0xff51afd7ed558ccdull;
  value ^= value >> 29;
  return value * 0xc4ceb9fe1a85ec53ull;
}

/// One round over a private table, computed twice along different ways; both must agree.
void compute(int who, uint64_t* table, uint64_t round) {
  uint64_t sum = 0, check = 0;
  double floating = 1.0;
  for (size_t i = 0; i < words; ++i) {
    table[i] = mix(round * words + i);
    sum += table[i];
    floating += 1.0 / static_cast<double>(i + 1);
  }
  double again = 1.0;
  for (size_t i = 0; i < words; ++i) {
    if (table[i] != mix(round * words + i)) probe::failed("worker %d: word %zu of round %lu changed", who, i, round);
    check += table[i];
    again += 1.0 / static_cast<double>(i + 1);
  }
  if (sum != check || floating != again) probe::failed("worker %d: round %lu does not add up", who, round);
  board->rounds[who] = board->rounds[who] + 1;
}

void work(int who) {
  auto* table = static_cast<uint64_t*>(malloc(words * sizeof(uint64_t)));
  for (uint64_t round = 0; !probe::go_has_come(); ++round) {
    compute(who, table, round);
    const timespec pause = {0, 200'000};
    if (nanosleep(&pause, nullptr) != 0)
      probe::failed("worker %d: nanosleep was interrupted: %s", who, strerror(errno));
  }
  free(table);
}

void* thread(void* argument) {
  __atomic_add_fetch(&started, 1, __ATOMIC_RELEASE);
  work(static_cast<int>(reinterpret_cast<long>(argument)));
  return nullptr;
}

pthread_t workers[threads];
pid_t child = 0;

int see_to_the_end() {
  sigset_t now;
  // Whoever has computed is out of fork, where the C library blocks all signals: the driver notes their masks.
  for (int i = 0; i <= threads; ++i) {
    while (board->rounds[i] == 0) usleep(1000);
  }
  probe::ready();
  for (auto& worker : workers) CHECK(pthread_join(worker, nullptr) == 0);
  probe::expect_child_passed(child);
  sigprocmask(SIG_SETMASK, nullptr, &now);
  CHECK(memcmp(&now, &blocked, 8) == 0);
  for (int i = 0; i <= threads; ++i) CHECK(board->rounds[i] > 0);
  return probe::passed();
}

void* see_to_the_end_alone(void*) {
  probe::await_end_of_first_thread();
  _exit(see_to_the_end());
}

}  // namespace

int main(int argc, char** argv) {
  const bool leader_ends = argc == 3 && strcmp(argv[1], "--leader-ends") == 0;
  probe::begin(argc - leader_ends, argv + leader_ends);
  board = probe::shared_memory<Board>();
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR2);
  sigprocmask(SIG_SETMASK, &blocked, nullptr);
  child = fork();
  if (child == 0) {
    work(threads);
    _exit(0);
  }
  for (long i = 0; i < threads; ++i)
    CHECK(pthread_create(&workers[i], nullptr, thread, reinterpret_cast<void*>(i)) == 0);
  probe::await(&started, threads);
  if (!leader_ends) return see_to_the_end();
  pthread_t last;
  CHECK(pthread_create(&last, nullptr, see_to_the_end_alone, nullptr) == 0);
  pthread_exit(nullptr);
}
