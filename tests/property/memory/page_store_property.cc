// Whatever is written comes back, however the runs lie.
#include "../../unit/memory/scratch.h"

#include <rapidcheck/gtest.h>

namespace stasis::memory {
namespace {

/// Ascending, disjoint runs from gaps and lengths.
std::vector<model::PageRun> runs_from(const std::vector<std::pair<uint8_t, uint8_t>>& shape, bool keep_zeros) {
  std::vector<model::PageRun> runs;
  uint64_t at = 0;
  for (const auto& [gap, length] : shape) {
    at += gap;
    const uint64_t end = at + 1 + length;
    runs.push_back({{at * page_size, end * page_size}, gap % 5 == 0, keep_zeros && gap % 2 == 0});
    at = end;
  }
  return runs;
}

RC_GTEST_PROP(PageStoreProperty, what_is_written_is_read,
              (const std::vector<std::pair<uint8_t, uint8_t>>& shape, uint8_t period, bool keep)) {
  const Scratch scratch;
  const auto directory = scratch.directory();
  FakePages source(
      [&](uint64_t page) { return period == 0 || page % period == 0 ? 0 : static_cast<uint8_t>(page | 1); });
  const auto runs = runs_from(shape, keep);
  const auto stats = write_pages(directory, "7", 1, runs, source);
  RC_ASSERT(stats.has_value());

  const auto stored = read_pagemap(directory, "7");
  RC_ASSERT(stored.has_value());
  uint64_t pages = 0, end = 0;
  for (const auto& run : *stored) {
    RC_ASSERT(run.range.begin >= end);
    end = run.range.end;
    pages += run.range.size() / page_size;
  }
  RC_ASSERT(pages == stats->pages_written);

  auto image = ImagePages::open(directory, "7");
  RC_ASSERT(image.has_value());
  Bytes page(page_size), expected(page_size);
  for (const auto& run : runs) {
    for (uint64_t at = run.range.begin; at < run.range.end; at += page_size) {
      RC_ASSERT((*image)->read(at, page).has_value());
      source.fill(at, expected);
      RC_ASSERT(page == expected);
    }
  }
}

}  // namespace
}  // namespace stasis::memory
