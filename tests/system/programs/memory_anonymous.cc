// Private and shared anonymous memory, protections, holes, and a reservation of terabytes.
// FILTERS
// LAZY
#include "probe.h"

namespace {

constexpr size_t page = 4096;

unsigned char pattern(size_t i) { return static_cast<unsigned char>(i * 131 + (i >> 12)); }

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  constexpr size_t size = 4 << 20;
  auto* area =
      static_cast<unsigned char*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  CHECK(area != MAP_FAILED);
  // Every third page stays untouched, one page is zero on purpose, the last is dropped again.
  for (size_t at = 0; at < size; ++at) {
    if (at / page % 3 != 2) area[at] = pattern(at);
  }
  memset(area + 3 * page, 0, page);
  CHECK(madvise(area + size - page, page, MADV_DONTNEED) == 0);

  auto* shared =
      static_cast<unsigned char*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  CHECK(shared != MAP_FAILED);
  for (size_t at = 0; at < size; at += 7) shared[at] = pattern(at);

  auto* read_only =
      static_cast<unsigned char*>(mmap(nullptr, 8 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  memset(read_only, 0x5a, 8 * page);
  CHECK(mprotect(read_only, 4 * page, PROT_READ) == 0);
  CHECK(mprotect(read_only + 4 * page, 4 * page, PROT_NONE) == 0);

  const size_t terabytes = 4ull << 40;
  void* reserved = mmap(nullptr, terabytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(reserved != MAP_FAILED);

  const pid_t child = fork();
  if (child == 0) {
    probe::wait_for_go();
    while (__atomic_load_n(shared + 1, __ATOMIC_ACQUIRE) != 77) usleep(1000);
    __atomic_store_n(shared + 2, 78, __ATOMIC_RELEASE);
    _exit(0);
  }
  usleep(20'000);  // the child has come out of fork
  probe::ready();
  probe::wait_for_go();

  for (size_t at = 0; at < size - page; ++at) {
    unsigned char expected = at / page % 3 != 2 ? pattern(at) : 0;
    if (at / page == 3) expected = 0;
    if (area[at] != expected) probe::failed("private byte %zu is %d, expected %d", at, area[at], expected);
  }
  for (size_t at = 0; at < page; ++at) CHECK_EQUAL(area[size - page + at], 0);
  for (size_t at = 0; at < size; at += 7) {
    if (shared[at] != pattern(at)) probe::failed("shared byte %zu is %d", at, shared[at]);
  }
  for (size_t at = 0; at < 4 * page; ++at) CHECK_EQUAL(read_only[at], 0x5a);
  CHECK(mprotect(read_only + 4 * page, 4 * page, PROT_READ) == 0);
  for (size_t at = 4 * page; at < 8 * page; ++at) CHECK_EQUAL(read_only[at], 0x5a);
  CHECK(mprotect(reserved, page, PROT_READ | PROT_WRITE) == 0);
  *static_cast<volatile int*>(reserved) = 1;
  // Still one memory for both.
  __atomic_store_n(shared + 1, 77, __ATOMIC_RELEASE);
  while (__atomic_load_n(shared + 2, __ATOMIC_ACQUIRE) != 78) usleep(1000);
  probe::expect_child_passed(child);
  return probe::passed();
}
