// Pagemaps that lie.
#include "scratch.h"

#include <gmock/gmock.h>

namespace stasis::memory {
namespace {

using testing::HasSubstr;

constexpr uint32_t in_parent = 1, present = 4;

class Pagemaps : public testing::Test {
 protected:
  Scratch scratch;
  image::Directory directory = scratch.directory("images");

  std::string rejection(const std::vector<RawEntry>& entries, const std::vector<uint8_t>& pages = {1, 2, 3, 4}) {
    write_pagemap(directory, "7", 1, entries);
    write_page_file(directory, 1, pages);
    const auto runs = read_pagemap(directory, "7");
    return runs ? "accepted" : runs.error().message();
  }
  /// images → parent → parent of that …
  image::Directory add_parent(const std::string& of, const std::string& name) {
    auto made = scratch.directory(name);
    std::filesystem::create_directory_symlink(scratch.root() / name, scratch.root() / of / "parent");
    return made;
  }
};

TEST_F(Pagemaps, accepts_what_is_right) { EXPECT_EQ(rejection({{0x1000, 1}, {0x3000, 3}}), "accepted"); }

TEST_F(Pagemaps, rejects_overlaps) {
  EXPECT_THAT(rejection({{0x1000, 3}, {0x3000, 1}}), HasSubstr("overlaps"));
  EXPECT_THAT(rejection({{0x5000, 1}, {0x1000, 1}}), HasSubstr("out of order"));
}
TEST_F(Pagemaps, rejects_pages_beyond_the_file) {
  EXPECT_THAT(rejection({{0x1000, 5}}), HasSubstr("its pagemap speaks of 20480"));
  EXPECT_THAT(rejection({{0x1000, 2}, {0x8000, uint64_t{1} << 40}}), HasSubstr("pagemap speaks of"));
}
TEST_F(Pagemaps, rejects_overflow) {
  EXPECT_THAT(rejection({{0x1000, ~uint64_t{0}}}), HasSubstr("impossible"));
  EXPECT_THAT(rejection({{~uint64_t{0} & ~uint64_t{0xfff}, 1}}), HasSubstr("impossible"));
  EXPECT_THAT(rejection({{0x1000, uint64_t{1} << 52}}), HasSubstr("impossible"));
}
TEST_F(Pagemaps, rejects_odd_addresses_and_empty_runs) {
  EXPECT_THAT(rejection({{0x1234, 1}}), HasSubstr("no page boundary"));
  EXPECT_THAT(rejection({{0x1000, 0}}), HasSubstr("impossible"));
  EXPECT_THAT(rejection({{0x1000, 1, present | in_parent}}), HasSubstr("both"));
}
TEST_F(Pagemaps, names_file_and_record) {
  EXPECT_THAT(rejection({{0x1000, 1}, {0x1234, 1}}), HasSubstr("pagemap-7.img, record 2"));
}

TEST_F(Pagemaps, rejects_a_missing_page_file) {
  write_pagemap(directory, "7", 9, {{0x1000, 1}});
  const auto runs = read_pagemap(directory, "7");
  ASSERT_FALSE(runs);
  EXPECT_THAT(runs.error().message(), HasSubstr("pages-9.img"));
}

TEST_F(Pagemaps, zero_runs_need_no_bytes) {
  write_pagemap(directory, "7", 9, {{0x1000, uint64_t{1} << 30, 0}});
  const auto runs = read_pagemap(directory, "7");
  ASSERT_TRUE(runs) << runs.error().message();
  ASSERT_EQ(runs->size(), 1u);
  EXPECT_TRUE(runs->front().zero);
}

TEST_F(Pagemaps, pages_elsewhere_need_no_bytes_and_cannot_be_read) {
  constexpr uint32_t lazy = 2;
  write_pagemap(directory, "7", 1, {{0x1000, 2, lazy}, {0x3000, 1, lazy | present}, {0x4000, 1}});
  write_page_file(directory, 1, {3, 4});
  auto pages = ImagePages::open(directory, "7");
  ASSERT_TRUE(pages) << pages.error().message();
  ASSERT_EQ((*pages)->runs().size(), 3u);
  EXPECT_TRUE((*pages)->runs()[0].elsewhere);
  EXPECT_FALSE((*pages)->runs()[1].elsewhere);
  Bytes two(2 * page_size);
  ASSERT_TRUE((*pages)->read(0x3000, two));
  EXPECT_EQ(two[0], 3);
  EXPECT_EQ(two[page_size], 4);
  const auto read = (*pages)->read(0x2000, two);
  ASSERT_FALSE(read);
  EXPECT_THAT(read.error().message(), HasSubstr("page 0x2000 is not in the images"));
}
TEST_F(Pagemaps, only_private_memory_of_the_last_images_is_elsewhere) {
  constexpr uint32_t lazy = 2;
  write_pagemap(directory, "shmem-3", 1, {{0x1000, 2, lazy}});
  const auto shared = read_pagemap(directory, "shmem-3");
  ASSERT_FALSE(shared);
  EXPECT_THAT(shared.error().message(), HasSubstr("field flags: pages of shared memory cannot come later"));
  const auto parent = add_parent("images", "one");
  write_pagemap(parent, "7", 2, {{0x1000, 4, lazy}});
  EXPECT_THAT(rejection({{0x2000, 1, in_parent}}), HasSubstr("page 0x2000 should be in the parent images, which were"));
}

TEST_F(Pagemaps, resolves_parents) {
  const auto parent = add_parent("images", "one");
  const auto grandparent = add_parent("one", "two");
  write_pagemap(grandparent, "7", 1, {{0x1000, 1}, {0x4000, 4}});
  write_page_file(grandparent, 1, {11, 14, 15, 16, 17});
  write_pagemap(parent, "7", 2, {{0x1000, 1, in_parent}, {0x4000, 1}, {0x5000, 2, in_parent}, {0x7000, 1, 0}});
  write_page_file(parent, 2, {24});
  write_pagemap(directory, "7", 3, {{0x1000, 1, in_parent}, {0x2000, 1}, {0x4000, 4, in_parent}});
  write_page_file(directory, 3, {32});
  auto pages = ImagePages::open(directory, "7");
  ASSERT_TRUE(pages) << pages.error().message();
  Bytes bytes(7 * page_size);
  ASSERT_TRUE((*pages)->read(0x1000, bytes));
  std::vector<int> found;
  for (size_t i = 0; i < 7; ++i) found.push_back(bytes[i * page_size + 100]);
  EXPECT_EQ(found, (std::vector<int>{11, 32, 0, 24, 15, 16, 0}));
  EXPECT_EQ((*pages)->runs().front().directory, "parent/parent/");
}

TEST_F(Pagemaps, rejects_pages_that_the_parent_lacks) {
  const auto parent = add_parent("images", "one");
  write_pagemap(parent, "7", 1, {{0x1000, 1}});
  write_page_file(parent, 1, {1});
  write_pagemap(directory, "7", 1, {{0x1000, 2, in_parent}});
  const auto runs = read_pagemap(directory, "7");
  ASSERT_FALSE(runs);
  EXPECT_THAT(runs.error().message(), HasSubstr("page 0x2000 should be in the parent images"));
}

TEST_F(Pagemaps, rejects_circles_of_parents) {
  std::filesystem::create_directory_symlink(".", scratch.root() / "images" / "parent");
  write_pagemap(directory, "7", 1, {{0x1000, 2, in_parent}});
  const auto runs = read_pagemap(directory, "7");
  ASSERT_FALSE(runs);
  EXPECT_THAT(runs.error().message(), HasSubstr("leads back to itself"));
}

TEST_F(Pagemaps, rejects_a_missing_parent) {
  write_pagemap(directory, "7", 1, {{0x1000, 2, in_parent}});
  EXPECT_FALSE(read_pagemap(directory, "7"));
}

TEST_F(Pagemaps, rejects_an_empty_pagemap) {
  auto writer = directory.create("pagemap-7.img");
  ASSERT_TRUE(writer);
  ASSERT_TRUE(writer->finish());
  const auto runs = read_pagemap(directory, "7");
  ASSERT_FALSE(runs);
  EXPECT_THAT(runs.error().message(), HasSubstr("the head is missing"));
}

}  // namespace
}  // namespace stasis::memory
