// Which pages are owed, whatever is done to the memory meanwhile.
#include "memory/lazy_owed.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace stasis::memory {
namespace {

AddressRange pages(uint64_t first, uint64_t count) { return {first * page_size, (first + count) * page_size}; }

/// Page by page.
std::map<uint64_t, uint64_t> content_of(const OwedPages& owed) {
  std::map<uint64_t, uint64_t> content;
  for (auto run = owed.next(0); run; run = owed.next(run->range.end)) {
    for (uint64_t at = run->range.begin; at < run->range.end; at += page_size)
      content[at / page_size] = (run->source + (at - run->range.begin)) / page_size;
  }
  return content;
}

TEST(LazyOwed, RunsAreFoundFromAnyAddress) {
  OwedPages owed;
  EXPECT_TRUE(owed.empty());
  owed.owe(pages(10, 5), 100 * page_size);
  const auto inside = owed.next(12 * page_size);
  ASSERT_TRUE(inside);
  EXPECT_EQ(inside->range, pages(12, 3));
  EXPECT_EQ(inside->source, 102 * page_size);
  EXPECT_EQ(owed.next(3 * page_size)->range, pages(10, 5));
  EXPECT_FALSE(owed.next(15 * page_size));
}

TEST(LazyOwed, WhatIsForgottenInTheMiddleLeavesBothEnds) {
  OwedPages owed;
  owed.owe(pages(10, 5), 100 * page_size);
  owed.forget(pages(12, 1));
  EXPECT_EQ(content_of(owed), (std::map<uint64_t, uint64_t>{{10, 100}, {11, 101}, {13, 103}, {14, 104}}));
  EXPECT_EQ(owed.bytes(), 4 * page_size);
}

TEST(LazyOwed, MovedPagesKeepTheirSource) {
  OwedPages owed;
  owed.owe(pages(10, 5), 10 * page_size);
  owed.owe(pages(50, 5), 50 * page_size);
  owed.move(pages(12, 10), 49 * page_size);  // replaces what is owed there
  EXPECT_EQ(content_of(owed), (std::map<uint64_t, uint64_t>{{10, 10}, {11, 11}, {49, 12}, {50, 13}, {51, 14}}));
}

TEST(LazyOwed, RandomOperationsDoWhatAMapOfPagesDoes) {
  std::mt19937 random(5);
  const auto below = [&](uint64_t limit) { return random() % limit; };
  for (int round = 0; round < 200; ++round) {
    OwedPages owed;
    std::map<uint64_t, uint64_t> expected;
    for (int step = 0; step < 60; ++step) {
      const uint64_t first = below(64), count = 1 + below(16);
      switch (below(3)) {
        case 0: {
          const uint64_t source = below(1000);
          owed.owe(pages(first, count), source * page_size);
          for (uint64_t i = 0; i < count; ++i) expected[first + i] = source + i;
          break;
        }
        case 1:
          owed.forget(pages(first, count));
          for (uint64_t i = 0; i < count; ++i) expected.erase(first + i);
          break;
        case 2: {
          const uint64_t to = first + count + below(64);
          std::map<uint64_t, uint64_t> moved;
          for (uint64_t i = 0; i < count; ++i) {
            if (auto node = expected.extract(first + i)) moved[to + i] = node.mapped();
          }
          for (uint64_t i = 0; i < count; ++i) expected.erase(to + i);
          expected.merge(moved);
          owed.move(pages(first, count), to * page_size);
          break;
        }
      }
      ASSERT_EQ(content_of(owed), expected) << "round " << round << ", step " << step;
      ASSERT_EQ(owed.bytes(), expected.size() * page_size);
      ASSERT_EQ(owed.empty(), expected.empty());
    }
  }
}

}  // namespace
}  // namespace stasis::memory
