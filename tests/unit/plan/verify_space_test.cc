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

TEST_F(SpaceModelTest, what_is_not_mapped_cannot_be_dropped) {
  EXPECT_THAT(space.drop(base, 9 * page_size).value_or(""), HasSubstr("ENOMEM"));
  EXPECT_THAT(space.drop(base + 1, page_size).value_or(""), HasSubstr("EINVAL"));
}

}  // namespace
}  // namespace stasis::plan
