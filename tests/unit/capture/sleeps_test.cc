// What remains of the sleeps of real threads, and that measuring does not disturb them.
#include <linux/futex.h>
#include <poll.h>
#include <time.h>

#include <thread>

#include "kernel/timer_list.h"
#include "specimen.h"

namespace stasis::capture {
namespace {

constexpr uint64_t ns = 1'000'000'000;
uint32_t word = 0;

/// A process whose threads fall asleep one after the other.
class Sleepers {
 public:
  using Call = long (*)();
  explicit Sleepers(std::vector<Call> calls)
      : specimen_([calls, tids = &*tids_] {
          std::vector<std::thread> threads;
          for (size_t index = 0; index < calls.size(); ++index) {
            threads.emplace_back([&, index] {
              (*tids)[index] = static_cast<pid_t>(syscall(SYS_gettid));
              calls[index]();
            });
            while ((*tids)[index] == 0 || !sleeps((*tids)[index])) usleep(200);
          }
          (*tids)[calls.size()] = 1;
          for (;;) pause();
          return 0;
        }),
        count_(calls.size()) {
    EXPECT_TRUE(eventually([&] { return (*tids_)[count_] != 0; }));
  }

  /// Captures the process and lets it run on; what remains by the order of the calls, 0 if nothing is said.
  std::vector<uint64_t> remaining() {
    std::vector<uint64_t> found(count_);
    auto captive = Captive::take(specimen_.pid());
    EXPECT_TRUE(captive) << captive.error().message();
    if (!captive) return found;
    numbers.assign(count_, 0);
    for (const auto& thread : (*captive)->context.application.tasks.at(0).threads) {
      for (size_t index = 0; index < count_; ++index) {
        if ((*tids_)[index] != thread.tid.value || !thread.interrupted_call) continue;
        found[index] = thread.interrupted_call->remaining_ns;
        numbers[index] = thread.interrupted_call->number;
      }
    }
    EXPECT_TRUE((*captive)->release(AfterDump::let_run));
    return found;
  }
  std::vector<uint32_t> numbers;  ///< of the calls, as the last capture saw them

 private:
  static bool sleeps(pid_t tid) {
    const auto stat = kernel::read_thread_stat(getpid(), tid);
    return stat && stat->state == 'S';
  }
  Shared<std::array<std::atomic<pid_t>, 64>> tids_;
  Specimen specimen_;
  size_t count_;
};

long nanosleep_hour() {
  const timespec hour{3600, 0};
  return syscall(SYS_nanosleep, &hour, nullptr);
}
long nanosleep_with_remainder() {
  const timespec hour{3600, 0};
  timespec rest;
  return syscall(SYS_nanosleep, &hour, &rest);
}
template <int Clock>
long clock_hour() {
  const timespec hour{3600, 0};
  return syscall(SYS_clock_nanosleep, Clock, 0, &hour, nullptr);
}
long poll_half_hour() { return syscall(SYS_poll, nullptr, 0, 1'800'000); }
long poll_forever() { return syscall(SYS_poll, nullptr, 0, -1); }
long futex_hour() {
  const timespec hour{3600, 0};
  return syscall(SYS_futex, &word, FUTEX_WAIT, 0, &hour, nullptr, 0);
}
long absolute_hour() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  time.tv_sec += 3600;
  return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr);
}

bool can_see_timers() { return kernel::read_timer_list().has_value(); }

TEST(Sleeps, RemainOfAllKindsCaptureAfterCapture) {
  if (!can_see_timers()) GTEST_SKIP() << "/proc/timer_list cannot be read here";
  Sleepers sleepers({nanosleep_hour, nanosleep_with_remainder, clock_hour<CLOCK_REALTIME>, clock_hour<CLOCK_MONOTONIC>,
                     clock_hour<CLOCK_BOOTTIME>, poll_half_hour, futex_hour, poll_forever, absolute_hour});
  const std::vector<uint32_t> numbers = {SYS_nanosleep,
                                         SYS_nanosleep,
                                         SYS_clock_nanosleep,
                                         SYS_clock_nanosleep,
                                         SYS_clock_nanosleep,
                                         SYS_poll,
                                         SYS_futex,
                                         0,
                                         0};
  std::vector<uint64_t> before(numbers.size(), 3600 * ns);
  before[5] = 1800 * ns;
  for (int round = 0; round < 4; ++round) {
    const auto after = sleepers.remaining();
    EXPECT_EQ(sleepers.numbers, numbers) << "in round " << round;
    for (size_t index = 0; index < numbers.size(); ++index) {
      if (numbers[index] == 0) continue;
      EXPECT_LT(after[index], before[index]) << "call " << index << " in round " << round;
      EXPECT_GT(after[index], before[index] - 600 * ns) << "call " << index << " in round " << round;
    }
    before = after;
  }
}

TEST(Sleeps, ThreadsThatAskedForTheSameAreToldApart) {
  if (!can_see_timers()) GTEST_SKIP() << "/proc/timer_list cannot be read here";
  Sleepers sleepers(std::vector<Sleepers::Call>(40, nanosleep_hour));
  const auto first = sleepers.remaining();
  EXPECT_TRUE(std::ranges::is_sorted(first, std::less_equal<>())) << testing::PrintToString(first);
  EXPECT_NE(first.front(), 0u);
  const auto second = sleepers.remaining();
  for (size_t index = 0; index < first.size(); ++index) {
    // All clocks between two captures are one: nobody has taken another's timer.
    EXPECT_NEAR(static_cast<double>(first[index] - second[index]), static_cast<double>(first[0] - second[0]), 1000.);
  }
}

TEST(Sleeps, WhatEndsMeanwhileIsTakenAsItEnded) {
  // Threads that sleep for moments are caught before, in and after their calls.
  Shared<std::atomic<uint64_t>> rounds;
  Specimen specimen([&] {
    std::vector<std::thread> threads;
    for (int index = 0; index < 6; ++index) {
      threads.emplace_back([&, index] {
        for (;;) {
          const timespec moment{0, 50'000 * (index + 1)};
          const long result = index % 2 == 0 ? syscall(SYS_nanosleep, &moment, nullptr) : poll(nullptr, 0, 1);
          if (result != 0) _exit(7);
          ++*rounds;
        }
      });
    }
    for (;;) pause();
    return 0;
  });
  for (int round = 0; round < 50; ++round) {
    const uint64_t before = *rounds;
    ASSERT_TRUE(eventually([&] { return *rounds > before + 6; }));
    auto captive = Captive::take(specimen.pid());
    ASSERT_TRUE(captive) << captive.error().message();
    ASSERT_TRUE((*captive)->release(AfterDump::let_run));
  }
}

TEST(Sleeps, ASignalThatComesMeanwhileIsKept) {
  Shared<std::atomic<int>> noticed;
  Specimen specimen([&] {
    static std::atomic<int>* count = &*noticed;
    signal(SIGUSR1, [](int) { ++*count; });
    const long result = nanosleep_hour();
    return result == -1 && errno == EINTR && *noticed == 1 ? 0 : 1;
  });
  ASSERT_TRUE(eventually([&] { return specimen.is_in(SYS_nanosleep); }));
  bool sent = false;
  auto captive = Captive::take(specimen.pid(), [&](std::string_view point) {
    if (point == "sleeping" && !std::exchange(sent, true)) kill(specimen.pid(), SIGUSR1);
  });
  ASSERT_TRUE(captive) << captive.error().message();
  EXPECT_TRUE(sent);
  EXPECT_EQ(*noticed, 0);
  ASSERT_TRUE((*captive)->release(AfterDump::let_run));
  specimen.expect_success();
}

/// The timer of a sleep that has been interrupted before has no slack, and might be that of any other such sleep.
TEST(Sleeps, ATimerOfSomebodyElseIsNotTakenForIts) {
  if (!can_see_timers()) GTEST_SKIP() << "/proc/timer_list cannot be read here";
  const auto sleep_again = [](const Specimen& specimen) {
    ASSERT_TRUE(eventually([&] { return specimen.is_in(SYS_nanosleep); }));
    kill(specimen.pid(), SIGSTOP);
    ASSERT_TRUE(eventually([&] { return specimen.state() == 'T'; }));
    kill(specimen.pid(), SIGCONT);
    ASSERT_TRUE(eventually([&] { return specimen.is_in(SYS_restart_syscall); }));
  };
  Specimen other([] {
    const timespec time{900, 0};
    return static_cast<int>(syscall(SYS_nanosleep, &time, nullptr));
  });
  Specimen specimen([] { return static_cast<int>(nanosleep_hour()); });
  sleep_again(other);
  sleep_again(specimen);
  auto captive = Captive::take(specimen.pid());
  ASSERT_TRUE(captive) << captive.error().message();
  const auto& call = (*captive)->context.application.tasks.at(0).threads.at(0).interrupted_call;
  ASSERT_TRUE(call);
  EXPECT_GT(call->remaining_ns, 3500'000'000'000u);
}

TEST(Sleeps, AStoppedThreadIsMeasuredAndStaysStopped) {
  if (!can_see_timers()) GTEST_SKIP() << "/proc/timer_list cannot be read here";
  Specimen specimen([] { return static_cast<int>(nanosleep_hour()); });
  ASSERT_TRUE(eventually([&] { return specimen.is_in(SYS_nanosleep); }));
  kill(specimen.pid(), SIGSTOP);
  ASSERT_TRUE(eventually([&] { return specimen.state() == 'T'; }));
  for (int round = 0; round < 2; ++round) {
    auto captive = Captive::take(specimen.pid());
    ASSERT_TRUE(captive) << captive.error().message();
    const auto& task = (*captive)->context.application.tasks.at(0);
    EXPECT_EQ(task.state, model::TaskState::stopped);
    EXPECT_TRUE(task.threads.at(0).interrupted_call);
    ASSERT_TRUE((*captive)->release(AfterDump::let_run));
    EXPECT_TRUE(eventually([&] { return specimen.state() == 'T'; }));
  }
}

}  // namespace
}  // namespace stasis::capture
