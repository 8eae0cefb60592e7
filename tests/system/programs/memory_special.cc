// Stacks that grow, locked memory, madvise states, protection keys, vDSO time, named and huge mappings.
// LAZY
#include <pthread.h>
#include <sys/prctl.h>

#include <initializer_list>

#include "smaps.h"

namespace {

constexpr size_t page = 4096;

char* map(size_t size, int flags = 0) {
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  CHECK(memory != MAP_FAILED);
  return static_cast<char*>(memory);
}

__attribute__((noinline)) int deep(int depth) {
  volatile char frame[8192];
  frame[0] = static_cast<char>(depth);
  return depth == 0 ? frame[0] : deep(depth - 1) + frame[0] - static_cast<char>(depth) + 1;
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  char* locked = map(4 * page);
  CHECK(mlock(locked, 2 * page) == 0);
  char* advised[] = {map(4 * page), map(4 * page), map(4 * page), map(4 << 20), map(4 << 20), map(4 << 20)};
  CHECK(madvise(advised[0], 4 * page, MADV_DONTFORK) == 0);
  CHECK(madvise(advised[1], 4 * page, MADV_WIPEONFORK) == 0);
  CHECK(madvise(advised[2], 4 * page, MADV_DONTDUMP) == 0);
  CHECK(madvise(advised[3], 4 << 20, MADV_HUGEPAGE) == 0);
  CHECK(madvise(advised[4], 4 << 20, MADV_MERGEABLE) == 0);
  CHECK(madvise(advised[5], 4 << 20, MADV_NOHUGEPAGE) == 0);
  for (auto* area : advised) area[1] = 'a';
  char* named = map(2 * page);
  const bool can_name = prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, named, 2 * page, "probe area") == 0;
  char* growing = map(16 * page, MAP_GROWSDOWN | MAP_STACK);
  growing[15 * page] = 'g';
  const int key = pkey_alloc(0, 0);
  char* keyed = map(2 * page);
  if (key > 0) {
    keyed[0] = 'k';
    CHECK(pkey_mprotect(keyed, 2 * page, PROT_READ | PROT_WRITE, key) == 0);
  }
  timespec before;
  CHECK(clock_gettime(CLOCK_MONOTONIC, &before) == 0);

  probe::ready();
  probe::wait_for_go();

  timespec after;
  CHECK(clock_gettime(CLOCK_MONOTONIC, &after) == 0);  // through the vDSO
  CHECK(after.tv_sec > before.tv_sec || (after.tv_sec == before.tv_sec && after.tv_nsec > before.tv_nsec));
  CHECK(time(nullptr) > 1'600'000'000);
  CHECK(probe::has_flag(locked, " lo") && !probe::has_flag(locked + 3 * page, " lo"));
  CHECK(probe::has_flag(advised[0], " dc") && probe::has_flag(advised[1], " wf") && probe::has_flag(advised[2], " dd"));
  CHECK(probe::has_flag(advised[3], " hg") && probe::has_flag(advised[4], " mg"));
  CHECK(probe::has_flag(advised[5], " nh") && !probe::has_flag(advised[4], " nh"));
  for (auto* area : advised) CHECK_EQUAL(area[1], 'a');
  CHECK(probe::has_flag(growing, " gd"));
  CHECK_EQUAL(growing[15 * page], 'g');
  CHECK_EQUAL(deep(200), 200);  // 1.6 MB: the main stack grows as before
  if (can_name) {
    FILE* maps = fopen("/proc/self/maps", "r");
    char line[4096];
    bool found = false;
    while (fgets(line, sizeof line, maps) != nullptr) found = found || strstr(line, "[anon:probe area]") != nullptr;
    fclose(maps);
    CHECK(found);
  }
  if (key > 0) {
    char value[64];
    probe::smaps(keyed, "ProtectionKey:", value, sizeof value);
    CHECK_EQUAL(atoi(value), key);
    CHECK_EQUAL(keyed[0], 'k');
    CHECK(pkey_alloc(0, 0) != key);  // still taken
  }
  return probe::passed();
}
