// Whose timer is whose, in a world of timers that come and go.
#include "capture/timer_match.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace stasis::capture {
namespace {

using kernel::SleepTimer;
using kernel::TimerClock;
using kernel::TimerList;
using testing::Optional;

constexpr int64_t now = 1'000'000'000'000, second = 1'000'000'000;
constexpr uint64_t seed = 1;
constexpr uint64_t hour = 3600 * 1'000'000'000ull;

TimerList list_of(std::vector<SleepTimer> timers) {
  TimerList list{.now = {now, now + 50 * second, now, now}, .sleeps = std::move(timers)};
  return list;
}
SleepTimer slack_free(int64_t expiry, TimerClock clock = TimerClock::monotonic) { return {clock, expiry, expiry}; }
SleepTimer with_slack(int64_t expiry) { return {TimerClock::monotonic, expiry, expiry + 50'000}; }

/// Threads and their timers, and timers of others that change from list to list.
struct World {
  std::vector<int64_t> expiries;
  std::function<std::vector<SleepTimer>(size_t round)> others = [](size_t) { return std::vector<SleepTimer>(); };

  TimerList list(const std::vector<bool>& asleep, size_t round) const {
    std::vector<SleepTimer> timers = others(round);
    for (size_t index = 0; index < expiries.size(); ++index) {
      if (asleep[index]) timers.push_back(slack_free(expiries[index]));
    }
    return list_of(std::move(timers));
  }
  TimerMatch match() const {
    const std::vector<TimerMatch::Sleep> sleeps(expiries.size(), {TimerClock::monotonic, hour, true});
    TimerMatch match(sleeps, list(std::vector<bool>(expiries.size(), true), 0), seed);
    size_t round = 0;
    while (const auto asleep = match.next_round()) match.learn(*asleep, list(*asleep, ++round));
    return match;
  }
  void expect_all_known() const {
    const auto found = match();
    for (size_t index = 0; index < expiries.size(); ++index)
      EXPECT_THAT(found.remaining(index), Optional(static_cast<uint64_t>(expiries[index] - now))) << index;
  }
};

TEST(TimerMatch, WhatFitsOnlyOneIsFoundAtOnce) {
  TimerMatch match({{TimerClock::monotonic, 10 * second, true},
                    {TimerClock::monotonic, 100 * second, true},
                    {TimerClock::realtime, hour, true},
                    {TimerClock::monotonic, 5 * second, false}},
                   list_of({slack_free(now + 7 * second), slack_free(now + 70 * second), slack_free(now + hour / 2 * 3),
                            slack_free(now + 60 * second, TimerClock::realtime), with_slack(now + 4 * second),
                            with_slack(now + 6 * second)}),
                   seed);
  EXPECT_THAT(match.remaining(0), Optional(7u * second));
  EXPECT_THAT(match.remaining(1), Optional(70u * second));
  EXPECT_THAT(match.remaining(2), Optional(10u * second));
  EXPECT_THAT(match.remaining(3), Optional(4u * second));
  EXPECT_FALSE(match.next_round());
}

TEST(TimerMatch, ATimerIsNotTakenTwiceUnlessThereAreTwo) {
  const std::vector<TimerMatch::Sleep> two(2, {TimerClock::monotonic, 10 * second, true});
  TimerMatch same(two, list_of({slack_free(now + second), slack_free(now + second)}), seed);
  EXPECT_FALSE(same.next_round());
  EXPECT_THAT(same.remaining(0), Optional(1u * second));
  EXPECT_THAT(same.remaining(1), Optional(1u * second));
  TimerMatch none(two, list_of({with_slack(now + second), slack_free(now + 11 * second)}), seed);
  EXPECT_FALSE(none.next_round());
  EXPECT_FALSE(none.remaining(0));
}

TEST(TimerMatch, WhatIsOverdueHasNothingLeft) {
  TimerMatch match({{TimerClock::monotonic, second, true}}, list_of({slack_free(now - 5)}), seed);
  EXPECT_THAT(match.remaining(0), Optional(0u));
}

TEST(TimerMatch, TurnsTellThreadsApart) {
  for (const size_t count : {1, 2, 3, 4, 7, 8, 64, 500}) {
    World world;
    for (size_t index = 0; index < count; ++index)
      world.expiries.push_back(now + 100 * second + static_cast<int64_t>(index * 7919 % count));
    world.expect_all_known();
  }
}

TEST(TimerMatch, TimersOfOthersAreNotTaken) {
  for (unsigned variant = 0; variant < 200; ++variant) {
    std::mt19937 random(variant);
    World world;
    for (unsigned index = 0; index < 1 + variant % 9; ++index)
      world.expiries.push_back(now + second + random() % 1'000'000);
    // Some sleep all the while, some begin anew each time.
    const auto fixed = static_cast<int64_t>(random() % 1'000'000);
    world.others = [&, fixed](size_t round) {
      return std::vector{slack_free(now + second + fixed), slack_free(now + 2 * second + static_cast<int64_t>(round)),
                         with_slack(now + second)};
    };
    world.expect_all_known();
  }
}

TEST(TimerMatch, AnExpiryAmongTheRoundsIsSeenThrough) {
  // A timer of somebody else runs out in the very round in which the first thread is left out for the first time.
  World world{.expiries = {now + second, now + 2 * second, now + 3 * second}};
  world.others = [](size_t round) {
    return round == 0 ? std::vector{slack_free(now + 4 * second)} : std::vector<SleepTimer>();
  };
  world.expect_all_known();
}

TEST(TimerMatch, AnotherDumpThatNumbersItsThreadsAtTheSameTimeIsSeenThrough) {
  constexpr size_t threads = 11;
  const auto timers_of = [](int64_t first) {
    std::vector<int64_t> expiries;
    for (size_t index = 0; index < threads; ++index) expiries.push_back(first + static_cast<int64_t>(index));
    return expiries;
  };
  const auto theirs = timers_of(now + 2 * second);
  const std::vector<TimerMatch::Sleep> sleeps(threads, {TimerClock::monotonic, hour, true});
  const auto world = [&](const std::vector<bool>& ours_asleep, const std::vector<bool>& theirs_asleep) {
    World both{.expiries = timers_of(now + second)};
    both.others = [&](size_t) {
      std::vector<SleepTimer> timers;
      for (size_t index = 0; index < threads; ++index) {
        if (theirs_asleep[index]) timers.push_back(slack_free(theirs[index]));
      }
      return timers;
    };
    return both.list(ours_asleep, 0);
  };
  const std::vector<bool> all(threads, true);
  TimerMatch ours(sleeps, world(all, all), seed), other(sleeps, world(all, all), seed + 1);
  while (const auto asleep = ours.next_round()) {
    const auto others_asleep = other.next_round().value_or(all);
    const auto list = world(*asleep, others_asleep);
    ours.learn(*asleep, list), other.learn(others_asleep, list);
  }
  for (size_t index = 0; index < threads; ++index)
    EXPECT_THAT(ours.remaining(index), Optional(1u * second + index)) << index;
}

TEST(TimerMatch, RoundsEnd) {
  // Lists that say nothing: nobody can be told apart, and nothing is claimed.
  TimerMatch match({{TimerClock::monotonic, hour, true}, {TimerClock::monotonic, hour, true}},
                   list_of({slack_free(now + second), slack_free(now + 2 * second)}), seed);
  int rounds = 0;
  while (const auto asleep = match.next_round()) {
    ASSERT_LT(++rounds, 40);
    match.learn(*asleep, list_of({slack_free(now + second), slack_free(now + 2 * second)}));
  }
  EXPECT_FALSE(match.remaining(0));
  EXPECT_FALSE(match.remaining(1));
}

}  // namespace
}  // namespace stasis::capture
