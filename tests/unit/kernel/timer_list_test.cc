// /proc/timer_list on literal texts, and the system calls whose timers stand in it.
#include "kernel/timer_list.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernel/timed_calls.h"

namespace stasis::kernel {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Optional;

constexpr const char* head = "Timer List Version: v0.10\nHRTIMER_MAX_CLOCK_BASES: 8\nnow at 1000 nsecs\n\n";
constexpr const char* two_clocks =
    "cpu: 0\n clock 0:\n  .base:       000000007056584e\n  .index:      0\n  .resolution: 1 nsecs\n"
    "  .offset:     0 nsecs\nactive timers:\n"
    " #0: <000000004510e8f6>, tick_nohz_handler, S:01\n"
    " # expires at 2000-2000 nsecs [in 1000 to 1000 nsecs]\n"
    " #1: <000000003c333b19>, hrtimer_wakeup, S:01\n"
    " # expires at 3000-53000 nsecs [in 2000 to 52000 nsecs]\n"
    " clock 1:\n  .base:       0000000087f1e10d\n  .index:      1\n  .resolution: 1 nsecs\n"
    "  .offset:     500 nsecs\nactive timers:\n"
    " #0: <00000000cc80e0ad>, hrtimer_wakeup, S:01\n"
    " # expires at 4000-4000 nsecs [in 3000 to 3000 nsecs]\n";
constexpr const char* second_processor =
    "  .expires_next   : 2000 nsecs\n\ncpu: 1\n clock 6:\n  .base:       1\n  .index:      6\n  .resolution: 1 nsecs\n"
    "  .offset:     -7 nsecs\nactive timers:\n"
    " #0: <00000000cc80e0ad>, hrtimer_wakeup, S:01, sleeper/4711\n"
    " # expires at 5000-5000 nsecs [in 4000 to 4000 nsecs]\n"
    "Tick Device: mode:     1\nPer CPU device: 0\nClock Event Device: lapic-deadline\n";

TEST(TimerList, SleepsOfAllProcessorsAndTheTimeOnEachClock) {
  const auto list = parse_timer_list(std::string(head) + two_clocks + second_processor);
  ASSERT_TRUE(list) << list.error().message();
  EXPECT_THAT(list->sleeps,
              ElementsAre(SleepTimer{TimerClock::monotonic, 3000, 53000}, SleepTimer{TimerClock::realtime, 4000, 4000},
                          SleepTimer{TimerClock::boottime, 5000, 5000}));
  EXPECT_THAT(list->now, ElementsAre(1000, 1500, 993, 1000));
}

TEST(TimerList, ReadingsAreAddedUpAndNothingTwice) {
  const std::string text = std::string(head) + two_clocks;
  auto list = *parse_timer_list(text + "active timers:\n" + text.substr(text.find(" #0: <00000000cc80e0ad>")));
  EXPECT_EQ(list.sleeps.size(), 2u) << "one of them came twice";
  const auto size = list.sleeps.size();
  list.merge(*parse_timer_list(text));
  EXPECT_EQ(list.sleeps.size(), size);
  list.merge(*parse_timer_list(text + second_processor));
  EXPECT_EQ(list.sleeps.size(), size + 1);
}

TEST(TimerList, WhatIsArmedAnewBetweenReadingsIsOneTimer) {
  const auto reading = [](const std::string& place, int64_t hard) {
    return *parse_timer_list(
        fmt::format("{} clock 0:\n  .offset:     0 nsecs\n #0: <{}>, hrtimer_wakeup, S:01\n # expires at 7-{} nsecs\n",
                    head, place, hard));
  };
  auto list = reading("1", 9);
  list.merge(reading("2", 9));
  EXPECT_EQ(list.sleeps.size(), 1u) << "its thread has gone to sleep again, elsewhere on its stack";
  list.merge(reading("2", 11));
  EXPECT_EQ(list.sleeps.size(), 1u) << "poll allows itself another slack";
}

TEST(TimerList, WhatIsMaskedOrCutIsAnError) {
  EXPECT_FALSE(parse_timer_list(""));
  EXPECT_FALSE(parse_timer_list(two_clocks));
  const std::string text = std::string(head) + two_clocks;
  const auto cut_at = [&](const char* place) { return parse_timer_list(text.substr(0, text.find(place))); };
  EXPECT_FALSE(cut_at("1000 nsecs"));
  EXPECT_FALSE(cut_at("-53000 nsecs"));
  EXPECT_FALSE(cut_at("53000 nsecs"));
  EXPECT_FALSE(cut_at("500 nsecs\nactive"));
  EXPECT_FALSE(cut_at(" # expires at 4000"));
  EXPECT_FALSE(parse_timer_list(std::string(head) + " #0: <0>, hrtimer_wakeup, S:01\n # expires at 9-8 nsecs\n"));
}

TEST(TimerList, OfThisMachine) {
  const auto list = read_timer_list();
  if (!list) GTEST_SKIP() << list.error().message();
  timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  const int64_t later = now.tv_sec * 1'000'000'000 + now.tv_nsec;
  EXPECT_LE(list->now[static_cast<size_t>(TimerClock::boottime)], later);
}

TEST(TimedCalls, DurationsAndWhoMeasuresThem) {
  const auto sleep = timed_request(SYS_nanosleep, {0x1000, 0x2000});
  ASSERT_TRUE(sleep);
  EXPECT_EQ(sleep->duration_at, 0x1000u);
  EXPECT_EQ(sleep->remainder_at, 0x2000u);
  EXPECT_THAT(sleep->clock, Optional(TimerClock::monotonic));
  EXPECT_TRUE(sleep->exact);
  const auto by_clock = [](uint64_t clock, uint64_t flags = 0) {
    return timed_request(SYS_clock_nanosleep, {clock, flags, 0x3000, 0x4000});
  };
  EXPECT_THAT(by_clock(CLOCK_REALTIME)->clock, Optional(TimerClock::monotonic));
  EXPECT_THAT(by_clock(CLOCK_BOOTTIME)->clock, Optional(TimerClock::boottime));
  EXPECT_FALSE(by_clock(CLOCK_PROCESS_CPUTIME_ID)->clock);
  EXPECT_EQ(by_clock(CLOCK_MONOTONIC)->duration_at, 0x3000u);
  EXPECT_EQ(by_clock(CLOCK_MONOTONIC)->remainder_at, 0x4000u);
  EXPECT_FALSE(by_clock(CLOCK_MONOTONIC, TIMER_ABSTIME));
  EXPECT_THAT(timed_request(SYS_poll, {0, 0, 1500})->duration_ns, Optional(1'500'000'000u));
  EXPECT_FALSE(timed_request(SYS_poll, {0, 0, 0xffffffff}));
  EXPECT_EQ(timed_request(SYS_futex, {0x5000, FUTEX_WAIT_PRIVATE, 0, 0x6000})->duration_at, 0x6000u);
  EXPECT_FALSE(timed_request(SYS_futex, {0x5000, FUTEX_WAIT_BITSET, 0, 0x6000}));
  EXPECT_FALSE(timed_request(SYS_futex, {0x5000, FUTEX_WAIT, 0, 0}));
  EXPECT_FALSE(timed_request(SYS_pause, {}));
}

TEST(TimedCalls, BehindARestart) {
  EXPECT_THAT(call_behind_restart("poll_schedule_timeout.constprop.0", {}), Optional(SYS_poll));
  EXPECT_THAT(call_behind_restart("futex_do_wait", {0x5000}), Optional(SYS_futex));
  EXPECT_THAT(call_behind_restart("hrtimer_nanosleep", {0x1000}), Optional(SYS_nanosleep));
  EXPECT_THAT(call_behind_restart("do_syscall_64", {CLOCK_BOOTTIME}), Optional(SYS_clock_nanosleep));
  EXPECT_THAT(call_behind_restart("do_cpu_nanosleep", {0xfffffffe}), Optional(SYS_clock_nanosleep));
  EXPECT_FALSE(call_behind_restart("0", {0x1000}));
  EXPECT_FALSE(call_behind_restart("", {0x1000}));
}

TEST(TimedCalls, AreFoundByTheirArgumentsWhereTheySleepForAnotherReason) {
  constexpr uint64_t address = 0x7fff'0000'1000;
  for (const auto* wchan : {"ptrace_stop", "exc_page_fault", "0", ""}) {
    EXPECT_THAT(call_behind_restart(wchan, {address, 1, 60'000}), Optional(SYS_poll));
    EXPECT_THAT(call_behind_restart(wchan, {address, address}), Optional(SYS_nanosleep));
    EXPECT_THAT(call_behind_restart(wchan, {CLOCK_MONOTONIC, 0, address, 0}), Optional(SYS_clock_nanosleep));
    EXPECT_FALSE(call_behind_restart(wchan, {0, 0, 500})) << "poll without descriptors";
    EXPECT_FALSE(call_behind_restart(wchan, {address, 0})) << "nanosleep, or a futex";
    EXPECT_FALSE(call_behind_restart(wchan, {address, 128, 7, address}));
  }
}

TEST(TimedCalls, MadeAgainWithWhatRemains) {
  EXPECT_THAT(with_duration(SYS_poll, {1, 2, 3, 4, 5, 6}, 1, 0x9000), ElementsAre(1, 2, 1, 4, 5, 6));
  EXPECT_THAT(with_duration(SYS_poll, {1, 2, 3, 4, 5, 6}, 2'000'000, 0x9000), ElementsAre(1, 2, 2, 4, 5, 6));
  EXPECT_THAT(with_duration(SYS_poll, {1, 2, 3, 4, 5, 6}, INT64_MAX, 0x9000), ElementsAre(1, 2, INT32_MAX, 4, 5, 6));
  EXPECT_THAT(with_duration(SYS_nanosleep, {1, 2, 3, 4, 5, 6}, 9, 0x9000), ElementsAre(0x9000, 2, 3, 4, 5, 6));
  EXPECT_THAT(with_duration(SYS_clock_nanosleep, {1, 2, 3, 4, 5, 6}, 9, 0x9000), ElementsAre(1, 2, 0x9000, 4, 5, 6));
  EXPECT_THAT(with_duration(SYS_futex, {1, 2, 3, 4, 5, 6}, 9, 0x9000), ElementsAre(1, 2, 3, 0x9000, 5, 6));
}

}  // namespace
}  // namespace stasis::kernel
