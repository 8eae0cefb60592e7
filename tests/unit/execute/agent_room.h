// An agent area mapped in the test, as a restore maps it: shared, executable, at the address it was built for.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <set>
#include <vector>

#include "agent/area.h"
#include "base/unique_fd.h"
#include "../eventually.h"

namespace stasis::agent {

class Room {
 public:
  /// A range that is free now.
  static AddressRange next_range(uint64_t size = 1 << 20) {
    void* found = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    EXPECT_NE(found, MAP_FAILED);
    munmap(found, size);
    return {reinterpret_cast<uint64_t>(found), reinterpret_cast<uint64_t>(found) + size};
  }

  explicit Room(std::vector<SlotProgram> programs, uint32_t counters = 1, AddressRange where = next_range())
      : where_(where) {
    auto built = build_area(where.begin, std::move(programs), counters);
    if (!built) throw std::runtime_error(built.error().message());
    area_ = std::move(*built);
    if (area_.bytes.size() > where.size()) throw std::runtime_error("the area does not fit");
    const UniqueFd memory(memfd_create("room", MFD_CLOEXEC));
    if (ftruncate(memory.get(), static_cast<off_t>(where.size())) != 0) throw std::runtime_error("ftruncate");
    void* mapped = mmap(reinterpret_cast<void*>(where.begin), where.size(), PROT_READ | PROT_WRITE | PROT_EXEC,
                        MAP_SHARED | MAP_FIXED_NOREPLACE, memory.get(), 0);
    if (mapped == MAP_FAILED) throw std::runtime_error("mmap of the area");
    std::memcpy(mapped, area_.bytes.data(), area_.bytes.size());
  }
  ~Room() { munmap(base(), where_.size()); }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;

  void run(uint32_t slot) { run_here(base(), slot); }

  uint8_t* base() const { return reinterpret_cast<uint8_t*>(where_.begin); }
  ByteView bytes() const { return {base(), where_.size()}; }
  const Area& area() const { return area_; }
  Header& header() const { return *reinterpret_cast<Header*>(base() + code_space); }
  Slot& slot(uint32_t index) const { return reinterpret_cast<Slot*>(base() + header().slots)[index]; }
  uint32_t state(uint32_t index) const { return __atomic_load_n(&slot(index).state, __ATOMIC_ACQUIRE); }
  bool comes_to(uint32_t index, uint32_t state_wanted) const {
    return eventually([&] { return state(index) == state_wanted; });
  }
  uint32_t counter(uint32_t index) const {
    return __atomic_load_n(reinterpret_cast<uint32_t*>(base() + header().counters) + index, __ATOMIC_ACQUIRE);
  }
  int64_t result(uint32_t slot, uint32_t instruction) const { return result_of(area_, bytes(), slot, instruction); }
  std::vector<Bytes> outs(uint32_t slot, uint32_t instruction) const {
    return outs_of(area_, bytes(), slot, instruction);
  }

 private:
  AddressRange where_;
  Area area_;
};

}  // namespace stasis::agent
