#include "memory/increments.h"

#include <random>

#include <fmt/format.h>

#include "scratch.h"

namespace stasis::memory {
namespace {

using model::PageRun;
using Ranges = std::vector<AddressRange>;

std::string text(const std::vector<PageRun>& runs) {
  std::string text;
  for (const auto& run : runs)
    text += fmt::format("{}-{}{} ", run.range.begin / page_size, run.range.end / page_size, run.keep_zeros ? "z" : "");
  return text;
}

AddressRange pages(uint64_t first, uint64_t last) { return {first * page_size, last * page_size}; }
PageRun run(uint64_t first, uint64_t last, bool keep_zeros = false) { return {pages(first, last), false, keep_zeros}; }

TEST(Increments, ranges_agree_with_sets_of_numbers) {
  std::mt19937 random(7);
  const auto some = [&] {
    Ranges ranges;
    for (uint64_t at = random() % 4; at < 60; at += 1 + random() % 5) {
      const uint64_t begin = at;
      at += 1 + random() % 6;
      ranges.push_back({begin, at});
    }
    return ranges;
  };
  const auto contains = [](const Ranges& ranges, uint64_t number) {
    return std::ranges::any_of(ranges, [&](const AddressRange& range) { return range.contains(number); });
  };
  for (int round = 0; round < 500; ++round) {
    const Ranges a = some(), b = some(), common = intersect(a, b), left = subtract(a, b);
    for (uint64_t number = 0; number < 80; ++number) {
      ASSERT_EQ(contains(common, number), contains(a, number) && contains(b, number)) << round << ": " << number;
      ASSERT_EQ(contains(left, number), contains(a, number) && !contains(b, number)) << round << ": " << number;
    }
    for (const auto& ranges : {common, left}) {
      for (size_t i = 0; i < ranges.size(); ++i) {
        ASSERT_FALSE(ranges[i].empty());
        ASSERT_TRUE(i == 0 || ranges[i - 1].end < ranges[i].begin);
      }
    }
  }
}

TEST(Increments, only_what_is_unchanged_and_stored_is_left_to_the_parent) {
  std::vector<StoredRun> stored(3);
  stored[0].range = pages(2, 5), stored[1].range = pages(5, 6), stored[2].range = pages(20, 30);
  stored[1].zero = true;
  const auto increment =
      increment_of(std::vector{run(1, 8), run(10, 12), run(22, 24, true)}, Ranges{pages(0, 4), pages(5, 23)}, stored);
  EXPECT_EQ(text(increment.in_parent), "2-4 22-23z ");
  EXPECT_EQ(text(increment.changed), "1-2 4-8 10-12 23-24z ") << "zeros of the parent's pagemap are no pages of it";
}

TEST(Increments, shared_memory_is_compared) {
  const Scratch scratch;
  const auto parent = scratch.directory("before"), directory = scratch.directory("now");
  FakePages before([](uint64_t page) { return page == 3 ? 0 : 1; });
  FakePages now([](uint64_t page) { return page == 2 ? 9 : page == 6 ? 0 : page >= 8 ? 2 : page == 3 ? 0 : 1; });
  ASSERT_TRUE(write_pages(parent, "shmem-1", 1, std::vector{run(1, 8)}, before));
  ASSERT_TRUE(link_parent(directory, "../before"));
  const auto written = write_compared(directory, "shmem-1", 1, std::vector{run(1, 10)}, now);
  ASSERT_TRUE(written) << written.error().message();
  EXPECT_EQ(written->pages_written, 3u) << "2, 8 and 9; 3 and 6 are zeros now";
  const auto stored = ImagePages::open(directory, "shmem-1");
  ASSERT_TRUE(stored);
  for (uint64_t page = 1; page < 10; ++page) {
    Bytes found(page_size), expected(page_size);
    ASSERT_TRUE((*stored)->read(page * page_size, found));
    now.fill(page * page_size, expected);
    EXPECT_EQ(found, expected) << page;
  }
}

TEST(Increments, parents_are_checked) {
  const Scratch scratch;
  const auto images = scratch.directory("images"), parent = scratch.directory("parent");
  EXPECT_FALSE(ParentImages::open(images, "../nowhere"));
  EXPECT_FALSE(ParentImages::open(images, "../parent")) << "no inventory";
  std::filesystem::copy_file(STASIS_SOURCE_DIR "/README.md", scratch.root() / "parent/inventory.img");
  EXPECT_TRUE(ParentImages::open(images, "../parent"));
  EXPECT_TRUE(ParentImages::open(images, (scratch.root() / "parent").string()));
  std::filesystem::copy_file(STASIS_SOURCE_DIR "/README.md", scratch.root() / "images/inventory.img");
  EXPECT_FALSE(ParentImages::open(images, ".")) << "itself";
  ASSERT_TRUE(link_parent(parent, "../images"));
  EXPECT_FALSE(ParentImages::open(images, "../parent")) << "a circle";
  ASSERT_TRUE(link_parent(parent, "../parent"));
  EXPECT_FALSE(ParentImages::open(images, "../parent")) << "a circle without us";
  ASSERT_TRUE(link_parent(parent, ""));
  const auto linked = ParentImages::linked(parent);
  ASSERT_TRUE(linked);
  EXPECT_EQ(*linked, nullptr) << "the link has been removed";
}

}  // namespace
}  // namespace stasis::memory
