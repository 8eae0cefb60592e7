// The verifier's model of an address space: which pages have been filled.
#include <gmock/gmock.h>
#include <sys/mman.h>

#include "plan/verify_space.h"

namespace stasis::plan {
namespace {

using testing::HasSubstr;

constexpr uint64_t base = 0x400000;
constexpr AddressRange pages(uint64_t first, uint64_t end) {
  return {base + first * page_size, base + end * page_size};
}

class SpaceModelTest : public testing::Test {
 protected:
  SpaceModelTest() {
    auto& mapping = wanted.mappings.emplace_back();
    mapping.range = pages(0, 8);
    mapping.protection = PROT_READ | PROT_WRITE;
    wanted.pages = {{.range = pages(1, 2)}, {.range = pages(4, 6)}};
    EXPECT_FALSE(space.map(base, 8 * page_size, PROT_READ | PROT_WRITE, false));
  }
  std::string difference() const { return space.compare(wanted).value_or("equal"); }

  SpaceModel space;
  model::AddressSpace wanted;
};

TEST_F(SpaceModelTest, just_the_stored_pages_are_filled) {
  EXPECT_FALSE(space.fill(pages(1, 2)));
  EXPECT_EQ(difference(), "the page at 0x404000 is not filled");
  EXPECT_FALSE(space.fill(pages(4, 6)));
  EXPECT_EQ(difference(), "equal");
}

TEST_F(SpaceModelTest, a_page_too_many_is_noticed_wherever_it_is) {
  for (const uint64_t page : {0, 2, 3, 6, 7}) {
    SpaceModelTest::space = {};
    EXPECT_FALSE(space.map(base, 8 * page_size, PROT_READ | PROT_WRITE, false));
    for (const auto range : {pages(1, 2), pages(4, 6), pages(page, page + 1)}) EXPECT_FALSE(space.fill(range));
    EXPECT_THAT(difference(), HasSubstr("is filled, and should be empty")) << page;
    EXPECT_FALSE(space.drop(pages(page, page + 1).begin, page_size));
    EXPECT_EQ(difference(), "equal") << page;
  }
}

TEST_F(SpaceModelTest, a_run_that_begins_before_a_stored_page_is_noticed) {
  EXPECT_FALSE(space.fill(pages(0, 6)));
  EXPECT_EQ(difference(), "the page at 0x400000 is filled, and should be empty");
}

TEST_F(SpaceModelTest, owed_pages_count_and_nobody_may_touch_them) {
  EXPECT_FALSE(space.fill(pages(1, 2)));
  EXPECT_FALSE(space.owes());
  EXPECT_FALSE(space.owe(pages(4, 6)));
  EXPECT_TRUE(space.owes());
  EXPECT_EQ(difference(), "equal");
  const AddressRange inside = pages(5, 6);
  EXPECT_THAT(space.fill(inside).value_or(""), HasSubstr("the page at 0x405000 is still to come"));
  EXPECT_THAT(space.drop(inside.begin, inside.size()).value_or(""), HasSubstr("still to come"));
  EXPECT_THAT(space.unmap(inside.begin, inside.size()).value_or(""), HasSubstr("still to come"));
  EXPECT_THAT(space.move(base, 8 * page_size, 0x800000).value_or(""), HasSubstr("still to come"));
  EXPECT_FALSE(space.drop(pages(0, 1).begin, page_size));
  EXPECT_EQ(difference(), "equal");
}

TEST_F(SpaceModelTest, what_is_there_cannot_be_owed) {
  EXPECT_FALSE(space.fill(pages(1, 2)));
  EXPECT_THAT(space.owe(pages(0, 3)).value_or(""), HasSubstr("the page at 0x401000 is there already"));
  EXPECT_THAT(space.owe(pages(7, 9)).value_or(""), HasSubstr("nothing is mapped at 0x408000"));
}

TEST_F(SpaceModelTest, a_mapping_moves_with_all_that_it_is) {
  const auto never_huge = [&](uint64_t begin) {
    wanted.mappings[0].range = {begin, begin + 8 * page_size};
    wanted.mappings[0].advice = {MADV_NOHUGEPAGE};
    return space.keeps_huge_pages_out(wanted);
  };
  EXPECT_FALSE(never_huge(base));
  constexpr uint64_t other = 0x800000;
  EXPECT_FALSE(space.unmap(base, 8 * page_size));
  EXPECT_FALSE(space.map(base, 8 * page_size, PROT_READ | PROT_WRITE, false, MAP_STACK));
  EXPECT_TRUE(never_huge(base));
  EXPECT_FALSE(space.move(base, 8 * page_size, other));
  EXPECT_TRUE(never_huge(other));
}

TEST_F(SpaceModelTest, a_mapping_does_not_move_onto_itself) {
  EXPECT_THAT(space.move(base, 8 * page_size, base + 4 * page_size).value_or(""), HasSubstr("(EINVAL)"));
  EXPECT_THAT(space.move(base, 8 * page_size, base).value_or(""), HasSubstr("(EINVAL)"));
  EXPECT_THAT(space.move(base, 8 * page_size, base + 1).value_or(""), HasSubstr("(EINVAL)"));
  EXPECT_THAT(space.move(base, 8 * page_size, ~uint64_t{0} - page_size + 1).value_or(""), HasSubstr("(EINVAL)"));
  EXPECT_FALSE(space.move(base, 8 * page_size, base + 8 * page_size));
}

/// What is protected in one go stays as different as it was.
TEST_F(SpaceModelTest, one_protection_does_not_make_one_mapping) {
  EXPECT_FALSE(space.map(pages(8, 9).begin, page_size, PROT_READ, true));
  EXPECT_FALSE(space.protect(pages(4, 9).begin, 5 * page_size, PROT_READ));
  auto& first = wanted.mappings[0];
  first.range = pages(0, 4);
  wanted.pages.clear();
  const auto add = [&](AddressRange range, model::Backing backing) {
    auto& mapping = wanted.mappings.emplace_back();
    mapping.range = range, mapping.protection = PROT_READ, mapping.backing = backing;
  };
  add(pages(4, 8), first.backing);
  add(pages(8, 9), model::Backing::shared_anonymous);
  EXPECT_EQ(difference(), "equal");
}

TEST_F(SpaceModelTest, what_is_attached_for_reading_gets_no_write_wherever_it_is) {
  EXPECT_FALSE(space.attach(pages(8, 9).begin, page_size, PROT_READ, ObjectId{7}));
  EXPECT_THAT(space.protect(pages(7, 9).begin, 2 * page_size, PROT_READ | PROT_WRITE).value_or(""),
              HasSubstr("the segment at 0x408000 is attached for reading only (EACCES)"));
}

TEST_F(SpaceModelTest, what_is_not_mapped_cannot_be_dropped) {
  EXPECT_THAT(space.drop(base, 9 * page_size).value_or(""), HasSubstr("ENOMEM"));
  EXPECT_THAT(space.drop(base + 1, page_size).value_or(""), HasSubstr("EINVAL"));
}

}  // namespace
}  // namespace stasis::plan
