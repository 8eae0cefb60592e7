#include "scratch.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include <fmt/format.h>

namespace stasis::memory {
namespace {

using model::PageRun;

PageRun run(uint64_t first, uint64_t last, bool shared = false, bool keep_zeros = false) {
  return {{first * page_size, last * page_size}, shared, keep_zeros};
}

TEST(PageStore, round_trip_drops_zero_pages) {
  const Scratch scratch;
  const auto directory = scratch.directory();
  FakePages source([](uint64_t page) { return page % 3 == 0 ? 0 : static_cast<uint8_t>(page | 1); });
  const std::vector<PageRun> runs{run(16, 25), run(30, 31), run(1000, 1300, true)};
  const auto stats = write_pages(directory, "7", 3, runs, source);
  ASSERT_TRUE(stats) << stats.error().message();
  EXPECT_EQ(stats->pages_written + stats->zero_pages_skipped, 310u);
  EXPECT_EQ(stats->zero_pages_skipped, 3u + 1 + 100);
  EXPECT_EQ(std::filesystem::file_size(scratch.root() / "pages-3.img"), stats->pages_written * page_size);

  auto stored = ImagePages::open(directory, "7");
  ASSERT_TRUE(stored) << stored.error().message();
  for (const auto& found : (*stored)->runs())
    EXPECT_EQ(found.shared_with_parent, found.range.begin >= 1000 * page_size);
  Bytes page(page_size), expected(page_size);
  for (const auto& one : runs) {
    for (uint64_t at = one.range.begin; at < one.range.end; at += page_size) {
      ASSERT_TRUE((*stored)->read(at, page));
      source.fill(at, expected);
      EXPECT_EQ(page, expected) << at;
    }
  }
  Bytes many(400 * page_size), wanted(400 * page_size);
  ASSERT_TRUE((*stored)->read(1000 * page_size, many));
  for (uint64_t i = 0; i < 300; ++i) source.fill((1000 + i) * page_size, {wanted.data() + i * page_size, page_size});
  EXPECT_EQ(many, wanted) << "beyond what is stored there are zeros";
}

TEST(PageStore, tells_of_pages_that_are_left_out_in_order) {
  const Scratch scratch;
  const auto parent = scratch.directory("parent"), directory = scratch.directory();
  FakePages source([](uint64_t page) { return static_cast<uint8_t>(page); });
  ASSERT_TRUE(write_pages(parent, "7", 5, std::vector{run(1, 8)}, source));
  ASSERT_TRUE(write_pages(directory, "7", 1, std::vector{run(2, 3), run(9, 10)}, source,
                          std::vector{run(1, 2), run(5, 6)}, std::vector{run(3, 5), run(6, 7, true), run(10, 12)}));
  EXPECT_EQ(std::filesystem::file_size(scratch.root() / "pages-1.img"), 2 * page_size);
  const auto stored = read_pagemap(directory, "7");
  ASSERT_TRUE(stored) << stored.error().message();
  std::string found;
  for (const auto& one : *stored) {
    found += fmt::format("{}-{} {}{} ", one.range.begin / page_size, one.range.end / page_size,
                         one.elsewhere ? "elsewhere" : fmt::format("{}{}", one.directory, one.file_offset / page_size),
                         one.shared_with_parent ? " shared" : "");
  }
  EXPECT_EQ(found, "1-2 parent/0 2-3 0 3-5 elsewhere 5-6 parent/4 6-7 elsewhere shared 9-10 1 10-12 elsewhere ");
}

TEST(PageStore, refers_to_pages_of_the_parent_images_in_order) {
  const Scratch scratch;
  const auto parent = scratch.directory("parent"), directory = scratch.directory();
  FakePages before([](uint64_t) { return uint8_t{1}; }), now([](uint64_t) { return uint8_t{2}; });
  ASSERT_TRUE(write_pages(parent, "7", 5, std::vector{run(1, 8)}, before));
  ASSERT_TRUE(write_pages(directory, "7", 1, std::vector{run(2, 3), run(9, 10)}, now,
                          std::vector{run(1, 2), run(3, 5), run(5, 6, true)}));
  const auto stored = read_pagemap(directory, "7");
  ASSERT_TRUE(stored) << stored.error().message();
  std::string found;
  for (const auto& one : *stored) {
    found += fmt::format("{}-{} {}{} ", one.range.begin / page_size, one.range.end / page_size,
                         one.directory.empty() ? "here" : one.directory, one.shared_with_parent ? "shared" : "");
  }
  EXPECT_EQ(found, "1-2 parent/ 2-3 here 3-5 parent/ 5-6 parent/shared 9-10 here ");
  EXPECT_EQ(std::filesystem::file_size(scratch.root() / "pages-1.img"), 2 * page_size);
}

TEST(PageStore, keeps_zeros_that_replace_a_file) {
  const Scratch scratch;
  const auto directory = scratch.directory();
  FakePages source([](uint64_t) { return uint8_t{0}; });
  const std::vector<PageRun> runs{run(1, 3), run(3, 5, false, true)};
  const auto stats = write_pages(directory, "7", 1, runs, source);
  ASSERT_TRUE(stats);
  EXPECT_EQ(stats->pages_written, 2u);
  const auto stored = read_pagemap(directory, "7");
  ASSERT_TRUE(stored);
  ASSERT_EQ(stored->size(), 1u);
  EXPECT_EQ(stored->front().range, (AddressRange{3 * page_size, 5 * page_size}));
}

TEST(PageStore, no_runs_make_an_empty_pagemap) {
  const Scratch scratch;
  const auto directory = scratch.directory();
  FakePages source([](uint64_t) { return uint8_t{1}; });
  ASSERT_TRUE(write_pages(directory, "shmem-2", 1, {}, source));
  const auto stored = read_pagemap(directory, "shmem-2");
  ASSERT_TRUE(stored) << stored.error().message();
  EXPECT_TRUE(stored->empty());
}

TEST(PageStore, refuses_runs_out_of_order) {
  const Scratch scratch;
  const auto directory = scratch.directory();
  FakePages source([](uint64_t) { return uint8_t{1}; });
  const std::vector<PageRun> runs{run(5, 8), run(7, 9)};
  EXPECT_FALSE(write_pages(directory, "7", 1, runs, source));
}

TEST(PageStore, large_memory_is_copied_by_several_threads_in_order) {
  const Scratch scratch;
  const auto directory = scratch.directory();
  FakePages source([](uint64_t page) { return page % 7 == 0 ? 0 : static_cast<uint8_t>(page | 1); });
  std::vector<PageRun> runs;
  for (uint64_t i = 0; i < 400; ++i) runs.push_back(run(i * 64, i * 64 + 1 + i % 60));
  runs.push_back(run(100000, 112000));
  ASSERT_TRUE(write_pages(directory, "7", 1, runs, source));
  auto stored = ImagePages::open(directory, "7");
  ASSERT_TRUE(stored) << stored.error().message();
  Bytes page(page_size), expected(page_size);
  for (const auto& one : runs) {
    for (uint64_t at = one.range.begin; at < one.range.end; at += page_size) {
      ASSERT_TRUE((*stored)->read(at, page));
      source.fill(at, expected);
      ASSERT_EQ(page, expected) << at;
    }
  }
}

TEST(PageStore, an_error_of_the_source_ends_the_dump) {
  const Scratch scratch;
  const auto directory = scratch.directory();
  struct Failing : PageSource {
    Status read(uint64_t address, std::span<uint8_t> buffer) override {
      if (address >= (uint64_t{30} << 20)) return fail(Error::gone("read", "task 7"));
      std::ranges::fill(buffer, uint8_t{1});
      return {};
    }
  } source;
  const std::vector<PageRun> runs{{{0, uint64_t{64} << 20}, false}};
  const auto stats = write_pages(directory, "7", 1, runs, source);
  ASSERT_FALSE(stats);
  EXPECT_EQ(stats.error().code(), ErrorCode::gone);
}

/// A child that has laid something out and sleeps; killed and reaped at the end.
class Child {
 public:
  template <typename Body>
  explicit Child(Body body) {
    int ready[2];
    EXPECT_EQ(pipe(ready), 0);
    pid_ = fork();
    if (pid_ == 0) {
      body();
      if (write(ready[1], "x", 1) != 1) _exit(1);
      while (true) pause();
    }
    char byte = 0;
    EXPECT_EQ(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    close(ready[1]);
  }
  ~Child() { end(); }
  void end() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
};

TEST(ProcessPages, reads_what_the_task_may_not_read_itself) {
  constexpr size_t pages = 9;
  auto* memory = static_cast<uint8_t*>(
      mmap(nullptr, pages * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(memory, MAP_FAILED);
  Child child([&] {
    for (size_t i = 0; i < pages; ++i) std::memset(memory + i * page_size, static_cast<int>(i + 1), page_size);
    mprotect(memory + 3 * page_size, 2 * page_size, PROT_NONE);
    mprotect(memory + 6 * page_size, page_size, PROT_WRITE);
  });
  ProcessPages source(child.pid());
  const auto base = reinterpret_cast<uint64_t>(memory);
  Bytes all(pages * page_size);
  ASSERT_TRUE(source.read(base, all));
  for (size_t i = 0; i < pages; ++i) EXPECT_EQ(all[i * page_size + 17], i + 1);

  const std::vector<AddressRange> ranges{{base, base + page_size},
                                         {base + 3 * page_size, base + 4 * page_size},
                                         {base + 8 * page_size, base + 9 * page_size}};
  Bytes some(3 * page_size);
  ASSERT_TRUE(source.read_ranges(ranges, some));
  EXPECT_EQ(some[0], 1);
  EXPECT_EQ(some[page_size], 4);
  EXPECT_EQ(some[2 * page_size], 9);
  munmap(memory, pages * page_size);
}

TEST(ProcessPages, says_when_the_task_is_gone) {
  Child child([] {});
  const pid_t pid = child.pid();
  child.end();
  ProcessPages source(pid);
  Bytes page(page_size);
  const auto status = source.read(0x10000, page);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), ErrorCode::gone);
}

TEST(ProcessPages, more_ranges_than_one_call_takes) {
  constexpr size_t pages = 6000;
  auto* memory = static_cast<uint8_t*>(
      mmap(nullptr, pages * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(memory, MAP_FAILED);
  for (size_t i = 0; i < pages; ++i) std::memcpy(memory + i * page_size, &i, sizeof i);
  ProcessPages source(getpid());
  std::vector<AddressRange> ranges;
  const auto base = reinterpret_cast<uint64_t>(memory);
  for (size_t i = 0; i < pages; i += 2) ranges.push_back({base + i * page_size, base + (i + 1) * page_size});
  Bytes some(ranges.size() * page_size);
  ASSERT_TRUE(source.read_ranges(ranges, some));
  for (size_t i = 0; i < ranges.size(); ++i) {
    size_t value = 0;
    std::memcpy(&value, some.data() + i * page_size, sizeof value);
    ASSERT_EQ(value, 2 * i);
  }
  munmap(memory, pages * page_size);
}

}  // namespace
}  // namespace stasis::memory
