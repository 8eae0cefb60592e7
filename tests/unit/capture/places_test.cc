#include "capture/places.h"

#include <gtest/gtest.h>

#include "specimen.h"

namespace stasis::capture {
namespace {

constexpr uint64_t mib = 1 << 20;

Occupied at(uint64_t begin, uint64_t end, bool is_stack = false) { return {{begin, end}, is_stack, false, false}; }

bool is_free(const std::vector<Occupied>& occupied, const AddressRange& range) {
  return std::none_of(occupied.begin(), occupied.end(), [&](const Occupied& one) { return one.range.overlaps(range); });
}

TEST(Places, GapKeepsAwayFromTheStack) {
  const std::vector<Occupied> occupied = {at(0x400000, 0x500000), at(0x7f0000000000, 0x7f0000100000),
                                          at(0x7ff000000000, 0x7ff000100000, true)};
  const auto gap = find_gap(occupied, 64 << 10);
  ASSERT_TRUE(gap);
  EXPECT_TRUE(is_free(occupied, *gap));
  EXPECT_EQ(gap->size(), 64u << 10);
  // Neither where the stack grows nor at the end of the address space.
  EXPECT_LT(gap->end, 0x7f0000000000u);
}

TEST(Places, GapAboveTheStackMayBeMissing) {
  constexpr uint64_t top = (uint64_t{1} << 47) - page_size;
  const std::vector<Occupied> occupied = {at(0x400000, 0x500000), at(0x7f0000000000, 0x7f0000100000),
                                          at(top - mib, top, true)};
  const auto gap = find_gap(occupied, mib);
  ASSERT_TRUE(gap);
  EXPECT_TRUE(is_free(occupied, *gap));
  EXPECT_LT(gap->end, 0x7f0000000000u);
}

TEST(Places, NarrowGapIsTakenWhenThereIsNoOther) {
  constexpr uint64_t top = (uint64_t{1} << 47) - page_size;
  const uint64_t hole = 0x100000000;
  const std::vector<Occupied> occupied = {at(0x10000, hole), at(hole + 3 * page_size, top)};
  const auto gap = find_gap(occupied, page_size);
  ASSERT_TRUE(gap);
  EXPECT_EQ(gap->begin, hole + page_size);
  EXPECT_FALSE(find_gap(occupied, 2 * page_size));
}

TEST(Places, StubGoesIntoUnusedBytesOfTheVdso) {
  Specimen specimen([] {
    for (;;) pause();
    return 0;
  });
  const auto maps = kernel::read_maps(specimen.pid());
  ASSERT_TRUE(maps);
  const auto place = find_stub_place(specimen.pid(), occupied_by(*maps));
  ASSERT_TRUE(place) << place.error().message();
  const auto vdso = std::find_if(maps->begin(), maps->end(), [](const auto& entry) { return entry.path == "[vdso]"; });
  ASSERT_NE(vdso, maps->end());
  EXPECT_TRUE(vdso->range.contains(*place));
}

}  // namespace
}  // namespace stasis::capture
