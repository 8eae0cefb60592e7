// PR_SET_MEMORY_MERGE: all memory is mergeable, what is mapped later too, but for what was given MADV_UNMERGEABLE. A
// child has put an end to it for itself.
//
// REQUIRES: python3 -c 'import ctypes; exit(ctypes.CDLL(None).prctl(68,0,0,0,0) < 0)' || ! echo no PR_SET_MEMORY_MERGE
#include <sys/prctl.h>

#include <initializer_list>

#include "smaps.h"

namespace {

constexpr size_t size = 16 * 4096;
constexpr int set_memory_merge = 67, get_memory_merge = 68;

char* map(int fd = -1) {
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);
  CHECK(memory != MAP_FAILED);
  return static_cast<char*>(memory);
}

bool is_mergeable(const void* memory) { return probe::has_flag(memory, " mg"); }

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  CHECK(prctl(set_memory_merge, 1, 0, 0, 0) == 0);
  const int file = open("/proc/self/exe", O_RDONLY);
  CHECK(file >= 0);
  char* const kept[] = {map(), map(file)};
  char* const merged[] = {map(), map(file)};
  for (char* memory : kept) CHECK(madvise(memory, size, MADV_UNMERGEABLE) == 0);
  for (char* memory : {kept[0], merged[0]}) memset(memory, 1, size);
  auto* const settled = probe::shared_memory<volatile int>();
  const pid_t child = probe::start([&] {
    CHECK(prctl(set_memory_merge, 0, 0, 0, 0) == 0);
    __atomic_store_n(settled, 1, __ATOMIC_RELEASE);
    probe::wait_for_go();
    CHECK_EQUAL(prctl(get_memory_merge, 0, 0, 0, 0), 0);
    CHECK(!is_mergeable(kept[0]) && !is_mergeable(merged[0]) && !is_mergeable(map()));
  });
  probe::await(settled, 1);

  probe::ready();
  probe::wait_for_go();

  CHECK_EQUAL(prctl(get_memory_merge, 0, 0, 0, 0), 1);
  for (const char* memory : kept) CHECK(!is_mergeable(memory));
  for (const char* memory : merged) CHECK(is_mergeable(memory));
  CHECK(is_mergeable(map()));
  probe::expect_child_passed(child);
  return probe::passed();
}
