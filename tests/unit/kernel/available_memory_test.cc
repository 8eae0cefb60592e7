#include "kernel/available_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

namespace stasis::kernel {
namespace {

TEST(AvailableMemory, NumbersAreFoundByWholeWords) {
  constexpr std::string_view meminfo = "MemTotal:       16315400 kB\nMemAvailable:    9123456 kB\nSReclaimable: 5 kB\n";
  EXPECT_EQ(number_after(meminfo, "MemAvailable:"), 9123456u);
  EXPECT_EQ(number_after("file_mapped 7\nfile 4096\n", "file"), 4096u);
  EXPECT_EQ(number_after("file_mapped 7\n", "file"), 0u);
  EXPECT_EQ(number_after("file max\n", "file"), 0u);
  EXPECT_EQ(number_after("", "file"), 0u);
}

TEST(AvailableMemory, ACgroupHasNoMoreThanTheSystem) {
  const auto all = available_memory();
  const auto ours = available_memory(getpid());
  ASSERT_TRUE(all && ours);
  EXPECT_GT(*ours, 0u);
  // Others take and give meanwhile: what is compared are sizes, not pages.
  EXPECT_LE(*ours / 2, *all);
  EXPECT_FALSE(available_memory(0x7ffffffe));
}

}  // namespace
}  // namespace stasis::kernel
