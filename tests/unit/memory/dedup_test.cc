// Parents keep what is still needed of them, and nothing else.
#include "memory/dedup.h"

#include "memory/block_file.h"
#include "scratch.h"

namespace stasis::memory {
namespace {

constexpr uint32_t in_parent = 1;

/// Pages of noise, by number.
class Noise : public PageSource {
 public:
  explicit Noise(uint64_t seed) : seed_(seed) {}
  Status read(uint64_t address, std::span<uint8_t> buffer) override {
    for (size_t i = 0; i < buffer.size(); ++i) buffer[i] = at(address + i);
    return {};
  }
  uint8_t at(uint64_t address) const { return static_cast<uint8_t>((address + seed_) * 0x9e3779b97f4a7c15 >> 40); }

 private:
  uint64_t seed_;
};

/// "new" has pages 0 to 99 of its own, refers to 100 to 199 of "old", and has nothing for 200 to 299, which are gone.
struct ChainOfTwo {
  Scratch scratch;
  Noise first{1}, second{2};
  image::Directory old = scratch.directory("old"), fresh = scratch.directory("new");

  explicit ChainOfTwo(const std::string& compression) {
    if (!compression.empty()) old.compress(*parse_compression(compression));
    const model::PageRun all{{0x100000, 0x100000 + 300 * page_size}, false};
    EXPECT_TRUE(write_pages(old, "7", 1, {&all, 1}, first));
    const model::PageRun gone{{0x100000, 0x100000 + 16 * page_size}, false};
    EXPECT_TRUE(write_pages(old, "8", 2, {&gone, 1}, first));  // of a task that has ended since
    const model::PageRun newer{{0x100000, 0x100000 + 100 * page_size}, false};
    EXPECT_TRUE(write_pages(fresh, "7", 1, {&newer, 1}, second));
    write_pagemap(fresh, "7", 1, {{0x100000, 100}, {0x100000 + 100 * page_size, 100, in_parent}});
    std::filesystem::create_symlink("../old", scratch.root() / "new" / "parent");
  }
  void expect_readable() {
    auto pages = ImagePages::open(fresh, "7");
    ASSERT_TRUE(pages) << pages.error().message();
    Bytes got(200 * page_size);
    ASSERT_TRUE((*pages)->read(0x100000, got));
    for (size_t i = 0; i < got.size(); ++i)
      ASSERT_EQ(got[i], (i < 100 * page_size ? second : first).at(0x100000 + i)) << i;
  }
};

TEST(Dedup, parents_keep_what_is_needed) {
  ChainOfTwo chain("");
  chain.expect_readable();
  const auto stats = release_superseded(chain.fresh);
  ASSERT_TRUE(stats) << stats.error().message();
  EXPECT_EQ(stats->files, 2u);
  EXPECT_EQ(disk_use(chain.scratch.root() / "old/pages-1.img"), 100 * page_size);
  EXPECT_EQ(disk_use(chain.scratch.root() / "old/pages-2.img"), 0u);
  EXPECT_EQ(std::filesystem::file_size(chain.scratch.root() / "old/pages-1.img"), 300 * page_size);
  EXPECT_EQ(disk_use(chain.scratch.root() / "new/pages-1.img"), 100 * page_size);
  chain.expect_readable();
  const auto again = release_superseded(chain.fresh);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->bytes, 0u);
}

TEST(Dedup, of_blocks_whole_ones_are_released) {
  ChainOfTwo chain("zstd");
  const uint64_t before = disk_use(chain.scratch.root() / "old/pages-1.img");
  const auto stats = release_superseded(chain.fresh);
  ASSERT_TRUE(stats) << stats.error().message();
  EXPECT_LT(disk_use(chain.scratch.root() / "old/pages-1.img"), before * 2 / 3);
  EXPECT_GT(stats->bytes, 0u);
  chain.expect_readable();
}

TEST(Dedup, without_parents_there_is_nothing_to_do) {
  const Scratch scratch;
  const auto directory = scratch.directory();
  Noise source(3);
  const model::PageRun run{{0, 4 * page_size}, false};
  ASSERT_TRUE(write_pages(directory, "7", 1, {&run, 1}, source));
  const auto stats = release_superseded(directory);
  ASSERT_TRUE(stats);
  EXPECT_EQ(stats->files, 0u);
  EXPECT_EQ(disk_use(scratch.root() / "pages-1.img"), 4 * page_size);
}

}  // namespace
}  // namespace stasis::memory
