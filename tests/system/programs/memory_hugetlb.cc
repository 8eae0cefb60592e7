// Huge pages, private and shared. With names or descriptors: memory_hugetlb_memfd, shm_hugetlb, ipc_hugetlb.
// REQUIRES: n=/proc/sys/vm/nr_hugepages; [ $(cat $n) -gt 15 ] || echo 16 > $n; [ $(cat $n) -gt 15 ] || ! echo too few
#include "probe.h"

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  constexpr size_t huge = 2 << 20;
  char* areas[2];
  const int flags[] = {MAP_PRIVATE, MAP_SHARED};
  for (int i = 0; i < 2; ++i) {
    void* memory = mmap(nullptr, 3 * huge, PROT_READ | PROT_WRITE, flags[i] | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    CHECK(memory != MAP_FAILED);
    areas[i] = static_cast<char*>(memory);
    areas[i][5] = 'h';
    areas[i][2 * huge + 4096] = 'H';
  }
  probe::ready();
  probe::wait_for_go();
  for (auto* area : areas) {
    CHECK_EQUAL(area[5], 'h');
    CHECK_EQUAL(area[2 * huge + 4096], 'H');
    CHECK_EQUAL(area[huge], 0);
  }
  return probe::passed();
}
