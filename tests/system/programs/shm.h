// What the programs about System V shared memory have in common.
#pragma once

#include <sys/ipc.h>
#include <sys/shm.h>

#include "probe.h"

namespace shm {

constexpr size_t huge = 2 << 20;
constexpr int of_huge_pages = SHM_HUGETLB | 21 << 26;  // SHM_HUGE_2MB of linux/shm.h, which does not go with sys/shm.h

inline char* attach(int id, int flags = 0) {
  void* memory = shmat(id, nullptr, flags);
  CHECK(memory != reinterpret_cast<void*>(-1));
  return static_cast<char*>(memory);
}

}  // namespace shm
