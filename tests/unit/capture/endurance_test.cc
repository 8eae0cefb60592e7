// A computing process that is captured again and again, or by somebody who dies in the middle of it: its result must be
// that of an undisturbed run.
#include <semaphore.h>

#include <map>
#include <random>
#include <thread>

#include "specimen.h"

namespace stasis::capture {
namespace {

constexpr int threads_of_work = 4;

/// Threads that compute, each its own sequence, with system calls and floating point in between.
struct Work {
  std::atomic<bool> stop = false;
  std::atomic<uint64_t> rounds[threads_of_work];
  std::atomic<uint64_t> mistakes = 0;
  uint64_t sums[threads_of_work];
  double products[threads_of_work];
};

constexpr uint64_t step(uint64_t value) { return value * 6364136223846793005u + 1442695040888963407u; }

void compute(Work& work, int index) {
  uint64_t value = static_cast<uint64_t>(index);
  double product = 1;
  while (!work.stop) {
    for (int inner = 0; inner < 2000; ++inner) {
      value = step(value);
      product = product * 1.0000001 + static_cast<double>(inner) * 1e-9;
    }
    const uint64_t round = ++work.rounds[index];
    // Calls of every kind: quick ones, sleeping ones, and one that the kernel restarts.
    if (syscall(SYS_gettid) <= 0) ++work.mistakes;
    timespec brief{0, 20'000};
    if (round % 8 == 0 && nanosleep(&brief, nullptr) != 0) ++work.mistakes;
    if (round % 8 == 4 && sched_yield() != 0) ++work.mistakes;
  }
  work.sums[index] = value;
  work.products[index] = product;
}

int run_threads(Work& work, int count) {
  std::vector<std::thread> threads;
  for (int index = 1; index < count; ++index) threads.emplace_back([&, index] { compute(work, index); });
  compute(work, 0);
  for (auto& thread : threads) thread.join();
  return work.mistakes == 0 ? 0 : 1;
}

/// What an undisturbed run of as many rounds gives.
void verify(const Work& work, int count) {
  EXPECT_EQ(work.mistakes, 0u);
  for (int index = 0; index < count; ++index) {
    uint64_t value = static_cast<uint64_t>(index);
    double product = 1;
    for (uint64_t round = 0; round < work.rounds[index]; ++round) {
      for (int inner = 0; inner < 2000; ++inner) {
        value = step(value);
        product = product * 1.0000001 + static_cast<double>(inner) * 1e-9;
      }
    }
    EXPECT_EQ(work.sums[index], value) << "thread " << index;
    EXPECT_EQ(work.products[index], product) << "thread " << index;
  }
}

bool progresses(const Work& work, int count) {
  uint64_t before[threads_of_work];
  for (int index = 0; index < count; ++index) before[index] = work.rounds[index];
  return eventually([&] {
    for (int index = 0; index < count; ++index) {
      if (work.rounds[index] <= before[index]) return false;
    }
    return true;
  });
}

class Endurance : public testing::TestWithParam<int> {
 protected:
  void finish(Specimen& specimen) {
    work_->stop = true;
    specimen.expect_success();
    verify(*work_, GetParam());
  }
  Shared<Work> work_;
};

INSTANTIATE_TEST_SUITE_P(Threads, Endurance, testing::Values(1, threads_of_work));

TEST_P(Endurance, AHundredCaptures) {
  Specimen specimen([&] { return run_threads(*work_, GetParam()); });
  ASSERT_TRUE(progresses(*work_, GetParam()));
  const size_t mappings = mappings_of(specimen.pid());
  for (int round = 0; round < 100; ++round) {
    auto captive = Captive::take(specimen.pid());
    ASSERT_TRUE(captive) << captive.error().message();
    ASSERT_EQ((*captive)->who.seen.size(), static_cast<size_t>(GetParam()));
    for (const auto& seen : (*captive)->who.seen) EXPECT_EQ(seen.pid, specimen.pid());
    ASSERT_TRUE((*captive)->release(AfterDump::let_run));
    if (round % 10 == 0) usleep(1000);
  }
  EXPECT_TRUE(progresses(*work_, GetParam()));
  EXPECT_EQ(mappings_of(specimen.pid()), mappings);
  finish(specimen);
}

/// Captures and dies at the given passing of the given point. Gives the wait status.
int capture_and_die(pid_t target, const std::string& name, int occurrence) {
  const pid_t capturer = fork();
  if (capturer == 0) {
    int left = occurrence;
    auto captive = Captive::take(target, [&](std::string_view point) {
      if (point == name && --left == 0) kill(getpid(), SIGKILL);
    });
    if (captive) (void)(*captive)->release(AfterDump::let_run);
    _exit(captive ? 0 : 1);
  }
  int status = 0;
  waitpid(capturer, &status, 0);
  return status;
}

void die_capturing(pid_t target, const std::string& name, int occurrence) {
  int status = capture_and_die(target, name, occurrence);
  // Whether a thread is found asleep is chance: a capture without that point is a whole one, and another is made.
  for (int attempt = 0; attempt < 200 && name == "sleeping" && WIFEXITED(status) && WEXITSTATUS(status) == 0; ++attempt)
    status = capture_and_die(target, name, occurrence);
  EXPECT_TRUE(WIFSIGNALED(status)) << name << " " << occurrence;
}

TEST_P(Endurance, TheCapturerDiesAtEveryPoint) {
  Specimen specimen([&] { return run_threads(*work_, GetParam()); });
  ASSERT_TRUE(progresses(*work_, GetParam()));
  std::map<std::string, int> points;
  {
    auto captive = Captive::take(specimen.pid(), [&](std::string_view point) { ++points[std::string(point)]; });
    ASSERT_TRUE(captive) << captive.error().message();
  }
  EXPECT_GE(points.size(), 20u);
  for (const auto& [name, count] : points) {
    for (int occurrence = 1; occurrence <= count; ++occurrence) {
      die_capturing(specimen.pid(), name, occurrence);
      ASSERT_TRUE(progresses(*work_, GetParam())) << name << " " << occurrence << ", state " << specimen.state();
    }
  }
  RecordProperty("mappings_left", static_cast<int>(mappings_of(specimen.pid())));
  finish(specimen);
}

TEST_P(Endurance, TheCapturerDiesAtAnyMoment) {
  Specimen specimen([&] { return run_threads(*work_, GetParam()); });
  ASSERT_TRUE(progresses(*work_, GetParam()));
  std::mt19937 random(4711);
  // Each may leave its stub in unused bytes, of which a process has only so many (README).
  for (int round = 0; round < 60; ++round) {
    const pid_t capturer = fork();
    if (capturer == 0) {
      for (;;) {
        auto captive = Captive::take(specimen.pid());
        if (!captive) {
          fmt::print(stderr, "{}\n", captive.error().message());
          _exit(1);
        }
        (void)(*captive)->release(AfterDump::let_run);
      }
    }
    usleep(500 + random() % 6000);
    kill(capturer, SIGKILL);
    int status = 0;
    waitpid(capturer, &status, 0);
    EXPECT_TRUE(WIFSIGNALED(status)) << status;
    ASSERT_TRUE(progresses(*work_, GetParam())) << "round " << round << ", state " << specimen.state();
  }
  finish(specimen);
}

TEST(EnduranceStopped, TheCapturerDiesAndTheTaskStaysStopped) {
  Shared<Work> work;
  Specimen specimen([&] { return run_threads(*work, 2); });
  ASSERT_TRUE(progresses(*work, 2));
  kill(specimen.pid(), SIGSTOP);
  ASSERT_TRUE(eventually([&] { return specimen.state() == 'T'; }));
  for (const char* point :
       {"seized", "stub-mask", "mapping-entered", "mapped", "agent-mask", "agent-running", "unmapping", "unmapped"}) {
    die_capturing(specimen.pid(), point, 1);
    ASSERT_TRUE(eventually([&] { return specimen.state() == 'T'; })) << point << " " << specimen.state();
  }
  kill(specimen.pid(), SIGCONT);
  EXPECT_TRUE(progresses(*work, 2));
  work->stop = true;
  specimen.expect_success();
  verify(*work, 2);
}

}  // namespace
}  // namespace stasis::capture
