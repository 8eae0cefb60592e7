// Pages are released when all who need them have them, not before, and whole.
#include "memory/consumed_pages.h"

#include <gmock/gmock.h>

#include "memory/increments.h"
#include "scratch.h"

namespace stasis::memory {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr AddressRange pages(uint64_t begin, uint64_t end) { return {begin * page_size, end * page_size}; }

TEST(PendingReads, what_one_reader_has_is_free_at_once) {
  PendingReads pending({pages(0, 10), pages(10, 20)}, {});
  EXPECT_THAT(pending.done(pages(3, 5)), ElementsAre(pages(3, 5)));
  EXPECT_THAT(pending.done(pages(8, 10)), ElementsAre(pages(8, 10)));
  EXPECT_THAT(pending.done(pages(10, 20)), ElementsAre(pages(10, 20)));
}

TEST(PendingReads, what_several_need_waits_for_the_last_of_them) {
  PendingReads pending({pages(0, 10), pages(4, 6), pages(5, 12)}, {});
  EXPECT_THAT(pending.done(pages(0, 10)), ElementsAre(pages(0, 4)));
  EXPECT_THAT(pending.done(pages(5, 12)), ElementsAre(pages(6, 12)));
  EXPECT_THAT(pending.done(pages(4, 6)), ElementsAre(pages(4, 6)));
}

TEST(PendingReads, parts_of_pages_count_as_pages) {
  PendingReads pending({{0, page_size + 1}}, {});
  EXPECT_THAT(pending.done({0, page_size}), ElementsAre(pages(0, 1)));
  EXPECT_THAT(pending.done({page_size, page_size + 1}), ElementsAre(pages(1, 2)));
}

TEST(PendingReads, blocks_are_released_as_a_whole) {
  const std::vector<Block> blocks{{0, 16, 900, 100}, {16, 16, 0, 300}, {32, 16, 300, 600}};
  PendingReads pending({pages(0, 20), pages(20, 30), pages(40, 48)}, blocks);
  EXPECT_THAT(pending.done(pages(0, 18)), ElementsAre(AddressRange{900, 1000}));
  EXPECT_THAT(pending.done(pages(18, 20)), IsEmpty());
  // Pages 30 to 40 nobody needs. What lies side by side in the file is one range.
  EXPECT_THAT(pending.done(pages(40, 48)), ElementsAre(AddressRange{300, 900}));
  EXPECT_THAT(pending.done(pages(20, 30)), ElementsAre(AddressRange{0, 300}));
}

TEST(PendingReads, what_nobody_has_announced_frees_nothing) {
  PendingReads pending({pages(5, 6)}, {});
  EXPECT_THAT(pending.done(pages(0, 5)), IsEmpty());
  EXPECT_THAT(pending.done(pages(7, 100)), IsEmpty());
  EXPECT_THAT(PendingReads({}, {}).done(pages(0, 1)), IsEmpty());
}

/// 40 pages of noise, and what is left of them.
struct Images {
  Scratch scratch;
  image::Directory directory = scratch.directory();
  std::filesystem::path file = scratch.root() / "pages-1.img";

  explicit Images(const std::string& compression = "") {
    if (!compression.empty()) directory.compress(*parse_compression(compression));
    FakePages source([](uint64_t page) { return static_cast<uint8_t>(page + 1); });
    const model::PageRun run{pages(16, 56), false};
    EXPECT_TRUE(write_pages(directory, "7", 1, {&run, 1}, source));
    directory.consume_pages();
  }
};

TEST(ConsumedPages, are_given_back_one_after_the_other) {
  Images images;
  const auto consumed = ConsumedPages::open(images.directory);
  ASSERT_TRUE(consumed) << consumed.error().message();
  (*consumed)->expect("pages-1.img", pages(0, 30));
  (*consumed)->expect("core-7.img", pages(0, 1));
  EXPECT_FALSE((*consumed)->has_begun());
  EXPECT_FALSE(images.directory.has(released_marker));
  (*consumed)->done("core-7.img", pages(0, 1));
  EXPECT_FALSE((*consumed)->has_begun());
  (*consumed)->done("pages-1.img", pages(0, 10));
  EXPECT_TRUE((*consumed)->has_begun());
  EXPECT_EQ(disk_use(images.file), 30 * page_size);
  (*consumed)->done("pages-1.img", pages(10, 30));
  EXPECT_EQ(disk_use(images.file), 10 * page_size);
  (*consumed)->release_rest();
  EXPECT_EQ(disk_use(images.file), 0u);
  EXPECT_EQ(std::filesystem::file_size(images.file), 40 * page_size);
  EXPECT_FALSE((*consumed)->trouble());
}

TEST(ConsumedPages, are_missed_afterwards) {
  Images images;
  ASSERT_TRUE(read_pagemap(images.directory, "7"));
  const auto consumed = ConsumedPages::open(images.directory);
  ASSERT_TRUE(consumed);
  (*consumed)->expect("pages-1.img", pages(0, 40));
  (*consumed)->done("pages-1.img", pages(39, 40));
  const auto runs = read_pagemap(images.directory, "7");
  ASSERT_FALSE(runs);
  EXPECT_THAT(runs.error().message(), HasSubstr("have been released"));
  ASSERT_TRUE(images.directory.begin());  // a new dump into the same directory
  EXPECT_FALSE(images.directory.has(released_marker));
}

TEST(ConsumedPages, of_parents_are_missed_too) {
  Images parent;
  const auto child = parent.scratch.directory("child");
  write_pagemap(child, "7", 1, {{16 * page_size, 40, 1}});
  ASSERT_TRUE(link_parent(child, ".."));
  const auto consumed = ConsumedPages::open(child);
  ASSERT_TRUE(consumed) << consumed.error().message();
  (*consumed)->expect("parent/pages-1.img", pages(0, 40));
  (*consumed)->done("parent/pages-1.img", pages(0, 40));
  EXPECT_EQ(disk_use(parent.file), 0u);
  EXPECT_FALSE(read_pagemap(child, "7")) << "it has no page of its own that could be missed";
  EXPECT_FALSE(read_pagemap(parent.directory, "7"));
}

TEST(ConsumedPages, of_blocks_leave_nothing_between_them) {
  Images images("lz4");  // blocks of some hundred bytes
  ASSERT_GT(disk_use(images.file), 0u);
  const auto consumed = ConsumedPages::open(images.directory);
  ASSERT_TRUE(consumed);
  (*consumed)->expect("pages-1.img", pages(0, 40));
  for (uint64_t page = 40; page-- > 0;) {
    EXPECT_GT(disk_use(images.file), 0u) << page;
    (*consumed)->done("pages-1.img", pages(page, page + 1));
  }
  EXPECT_EQ(disk_use(images.file), 0u);
}

TEST(ConsumedPages, that_cannot_be_released_are_found_out_before) {
  Images images;
  std::filesystem::rename(images.file, images.scratch.root() / "elsewhere");
  std::filesystem::create_symlink("elsewhere", images.file);
  const auto consumed = ConsumedPages::open(images.directory);
  ASSERT_FALSE(consumed);
  EXPECT_THAT(consumed.error().message(), HasSubstr("pages-1.img"));
}

TEST(ConsumedPages, that_cannot_be_released_meanwhile_stay) {
  Images images;
  const auto consumed = ConsumedPages::open(images.directory);
  ASSERT_TRUE(consumed);
  (*consumed)->expect("pages-1.img", pages(0, 40));
  std::filesystem::rename(images.file, images.scratch.root() / "elsewhere");
  (*consumed)->done("pages-1.img", pages(0, 40));
  ASSERT_TRUE((*consumed)->trouble());
  EXPECT_THAT((*consumed)->trouble()->message(), HasSubstr("pages-1.img"));
  EXPECT_FALSE((*consumed)->has_begun());
  EXPECT_EQ(disk_use(images.scratch.root() / "elsewhere"), 40 * page_size);
}

TEST(ConsumedPages, are_read_by_stasis_alone) {
  Images images;
  const auto runs = read_pagemap(images.directory, "7");
  ASSERT_TRUE(runs);
  EXPECT_TRUE(runs->front().through_stasis);
  EXPECT_FALSE(runs->front().in_blocks);
  const auto kept = read_pagemap(images.scratch.directory(), "7");
  ASSERT_TRUE(kept);
  EXPECT_FALSE(kept->front().through_stasis);
}

}  // namespace
}  // namespace stasis::memory
