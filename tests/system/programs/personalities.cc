// Each thread has a personality of its own: the first, others, one that has a child. Under READ_IMPLIES_EXEC what a
// thread maps can be executed, but not what was there.
#include <pthread.h>
#include <sys/personality.h>

#include "smaps.h"

namespace {

constexpr size_t page = 4096;
constexpr unsigned long ask = 0xffffffff;
constexpr unsigned of_first = READ_IMPLIES_EXEC | UNAME26, of_threads[] = {ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC, 0};
constexpr int threads = sizeof of_threads / sizeof *of_threads;
volatile int settled = 0;

void* map() {
  void* memory = mmap(nullptr, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED);
  return memory;
}

void expect(unsigned wanted) {
  CHECK_EQUAL(personality(ask), wanted);
  CHECK_EQUAL(probe::has_flag(map(), " ex"), (wanted & READ_IMPLIES_EXEC) != 0);
}

void* live(void* argument) {
  const unsigned own = of_threads[reinterpret_cast<intptr_t>(argument)];
  pid_t child = 0;
  if (own == 0) {  // its thread has to be there before other memory is
    child = probe::start([] {
      probe::wait_for_go();
      expect(0);
    });
  }
  CHECK(personality(own) >= 0);
  __atomic_add_fetch(&settled, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  expect(own);
  if (child != 0) probe::expect_child_passed(child);
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  CHECK(personality(0) >= 0);
  const void* const before = map();
  pthread_t others[threads];
  for (intptr_t i = 0; i < threads; ++i)
    CHECK(pthread_create(&others[i], nullptr, live, reinterpret_cast<void*>(i)) == 0);
  probe::await(&settled, threads);
  CHECK(personality(of_first) >= 0);

  probe::ready();
  probe::wait_for_go();

  expect(of_first);
  CHECK(!probe::has_flag(before, " ex"));
  for (auto& other : others) CHECK(pthread_join(other, nullptr) == 0);
  return probe::passed();
}
