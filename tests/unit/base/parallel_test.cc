#include "base/parallel.h"

#include <sched.h>

#include <atomic>
#include <latch>
#include <vector>

#include <gtest/gtest.h>

namespace stasis {
namespace {

TEST(ParallelFor, TakesEveryStepOnce) {
  for (const size_t count : {0u, 1u, 7u, 31u, 32u, 1000u}) {
    std::vector<std::atomic<int>> taken(count);
    ASSERT_TRUE(parallel_for(count, [&](size_t index) -> Status {
      ++taken[index];
      return {};
    }));
    for (const auto& times : taken) EXPECT_EQ(times, 1);
  }
}

TEST(ParallelFor, ReturnsAnErrorAndBeginsNoMoreSteps) {
  std::atomic<size_t> begun{0};
  const auto status = parallel_for(100'000, [&](size_t index) -> Status {
    ++begun;
    if (index == 100) return fail(Error::conflict("step", "it failed"));
    return {};
  });
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().operation(), "step");
  EXPECT_LT(begun, 100'000u);
}

TEST(ParallelFor, PrefersTheErrorOfTheLowestIndex) {
  const auto status = parallel_for(
      4, [&](size_t index) -> Status { return fail(Error::conflict("step " + std::to_string(index), "it failed")); });
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().operation(), "step 0");
}

TEST(StartBeside, LeavesTheThreadAllProcessors) {
  cpu_set_t ours, its;
  ASSERT_EQ(sched_getaffinity(0, sizeof ours, &ours), 0);
  CPU_ZERO(&its);
  std::latch started(1);
  {
    const auto thread = start_beside([&] {
      started.wait();
      sched_getaffinity(0, sizeof its, &its);
    });
    started.count_down();
  }
  EXPECT_TRUE(CPU_EQUAL(&its, &ours));
}

}  // namespace
}  // namespace stasis
