// SeizedTree with all rooms of stasis, on real children.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <optional>
#include <thread>

#include "capture/capture.h"
#include "model/difference.h"
#include "specimen.h"

namespace stasis::capture {
namespace {

/// Leaves nothing open but /dev/null.
void close_everything() {
  for (int fd = 3; fd < 1024; ++fd) close(fd);
  const int null = open("/dev/null", O_RDWR);
  for (int fd = 0; fd < 3; ++fd) dup2(null, fd);
  close(null);
}

std::string refusals(const Diagnostics& diagnostics) {
  std::string text;
  for (const auto& one : diagnostics.all()) text += one.text() + "\n";
  return text;
}

Result<std::unique_ptr<SeizedTree>> capture_tree(pid_t root, std::function<void(std::string_view)> at_point = {}) {
  CaptureOptions options;
  options.root_pid = root;
  options.policy.leave_running = true;
  options.at_point = std::move(at_point);
  return SeizedTree::capture(options);
}

/// All threads of the process and of its children.
bool everybody_pauses(pid_t root) {
  const auto pauses = [](pid_t pid, pid_t tid) {
    const auto text = kernel::read_proc(pid, fmt::format("task/{}/syscall", tid));
    return text && text->starts_with(fmt::format("{} ", SYS_pause));
  };
  for (const pid_t pid : kernel::list_descendants(root)) {
    const auto threads = kernel::list_threads(pid);
    if (!threads || !std::ranges::all_of(*threads, [&](pid_t tid) { return pauses(pid, tid); })) return false;
  }
  return true;
}

TEST(SeizedTree, TwoCapturesOfTheSameTreeAreEqual) {
  Shared<std::atomic<int>> ready;
  Specimen specimen([&] {
    close_everything();
    signal(SIGUSR1, [](int) {});
    if (fork() == 0) {
      setpgid(0, 0);
      ++*ready;
      for (;;) pause();
    }
    std::thread other([&] {
      ++*ready;
      for (;;) pause();
    });
    for (;;) pause();
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return *ready == 2 && everybody_pauses(specimen.pid()); }));
  auto first = capture_tree(specimen.pid());
  ASSERT_TRUE(first) << first.error().message();
  ASSERT_FALSE((*first)->context().diagnostics.refused()) << refusals((*first)->context().diagnostics);
  const auto before = (*first)->context().application;
  EXPECT_EQ(before.tasks.size(), 2u);
  EXPECT_EQ(before.tasks[0].threads.size(), 2u);
  EXPECT_EQ(before.tasks[0].name, before.tasks[0].threads[0].name);
  EXPECT_NE(before.signal_handlers.at(before.tasks[0].handlers).actions[SIGUSR1 - 1].handler, 0u);
  ASSERT_TRUE((*first)->release(AfterDump::let_run));
  EXPECT_GT((*first)->times().frozen_us, 0u);

  auto second = capture_tree(specimen.pid());
  ASSERT_TRUE(second) << second.error().message();
  EXPECT_THAT(model::differences(before, (*second)->context().application), testing::IsEmpty());
  ASSERT_TRUE((*second)->release(AfterDump::kill));
  EXPECT_TRUE(WIFSIGNALED(specimen.wait()));
}

TEST(SeizedTree, MaskOfASuspendedThreadIsItsOwn) {
  Specimen specimen([] {
    close_everything();
    sigset_t mask, none;
    sigemptyset(&none);
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR1);
    sigprocmask(SIG_BLOCK, &mask, nullptr);
    return sigsuspend(&none);
  });
  ASSERT_TRUE(eventually([&] { return specimen.is_in(SYS_rt_sigsuspend); }));
  auto tree = capture_tree(specimen.pid());
  ASSERT_TRUE(tree) << tree.error().message();
  const auto& thread = (*tree)->context().application.tasks.at(0).threads.at(0);
  EXPECT_EQ(thread.blocked_signals, uint64_t{1} << (SIGUSR1 - 1));
}

std::atomic<int>* handled = nullptr;

/// Both an interval timer and a timer of one thread are about to expire; each ends a call that lasts forever otherwise.
class ExpiringTimers {
 public:
  explicit ExpiringTimers(suseconds_t delay_us)
      : specimen_([&, delay_us] {
          close_everything();
          handled = &*alarms_;
          handle(SIGALRM), handle(SIGRTMIN + 1);
          std::thread reader([&] { read_until(delay_us); });
          const itimerval when{{}, {0, delay_us}};
          if (setitimer(ITIMER_REAL, &when, nullptr) != 0) return 1;
          for (;;) pause();
        }) {
    EXPECT_TRUE(eventually([&] { return *alarms_ != 0 || (specimen_.is_in(SYS_pause) && reads()); }));
  }
  pid_t pid() const { return specimen_.pid(); }
  bool have_expired() const {
    const auto first = kernel::read_thread_status(pid(), pid()), second = kernel::read_thread_status(pid(), *reader_);
    return first && first->shared_pending != 0 && second && second->sig_pending != 0;
  }
  /// One has come before anybody looked.
  bool were_early() const { return *alarms_ != 0; }

 private:
  bool reads() const {
    const auto text = kernel::read_proc(pid(), fmt::format("task/{}/syscall", reader_->load()));
    return *reader_ != 0 && text && text->starts_with("0 ");
  }
  static void handle(int number) {
    struct sigaction action{};
    action.sa_handler = [](int) { ++*handled; };
    sigaction(number, &action, nullptr);
  }
  void read_until(suseconds_t delay_us) {
    sigset_t alarm;
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &alarm, nullptr);
    *reader_ = gettid();
    struct {
      sigval value;
      int signal, notify, tid;
      char rest[48];
    } event = {{}, SIGRTMIN + 1, SIGEV_THREAD_ID, gettid(), {}};
    int timer = -1, ends[2];
    const itimerspec when{{}, {0, delay_us * 1000}};
    char byte;
    if (syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &timer) != 0 || pipe(ends) != 0 ||
        syscall(SYS_timer_settime, timer, 0, &when, nullptr) != 0 || read(ends[0], &byte, 1) != -1)
      _exit(1);
    for (;;) pause();
  }

  Shared<std::atomic<pid_t>> reader_;
  Shared<std::atomic<int>> alarms_;
  Specimen specimen_;
};

class TimersThatExpire : public testing::TestWithParam<const char*> {};

TEST_P(TimersThatExpire, AreInTheImageOnce) {
  constexpr suseconds_t longest_delay = 900'000;
  std::optional<ExpiringTimers> timers;
  std::unique_ptr<SeizedTree> tree;
  for (suseconds_t delay = 100'000; tree == nullptr; delay = std::min(2 * delay, longest_delay)) {
    timers.emplace(delay);
    auto captured = capture_tree(timers->pid(), [&](std::string_view point) {
      if (point != GetParam()) return;
      EXPECT_TRUE(eventually([&] { return timers->were_early() || timers->have_expired(); }));
    });
    ASSERT_TRUE(captured) << captured.error().message();
    if (!timers->were_early()) tree = std::move(*captured);
  }
  const auto& task = tree->context().application.tasks.at(0);
  ASSERT_EQ(task.threads.size(), 2u);
  const auto& reader = task.threads[1];
  const bool in_time = std::string_view(GetParam()) != "captured";
  EXPECT_EQ(task.pending.size(), in_time ? 1u : 0u);
  EXPECT_EQ(reader.pending.size(), in_time ? 1u : 0u);
  EXPECT_EQ(task.interval_timers[0].remaining_us == 0, in_time);
  EXPECT_EQ(task.posix_timers.at(0).remaining_ns == 0, in_time);
  const auto result = [](const model::Thread& thread) {
    constexpr int rax = 10;
    return reinterpret_cast<const int64_t*>(thread.registers.general.data())[rax];
  };
  EXPECT_EQ(result(task.threads[0]), in_time ? -EINTR : SYS_pause);
  EXPECT_EQ(result(reader), in_time ? -EINTR : SYS_read);
}

INSTANTIATE_TEST_SUITE_P(At, TimersThatExpire,
                         testing::Values("seized", "walked", "looked", "uploaded", "unmapping", "disinfected",
                                         "captured"),
                         [](const auto& info) { return std::string(info.param); });

TEST(SeizedTree, DestroyedWithoutReleaseItLetsGo) {
  Shared<std::atomic<uint64_t>> counter;
  Specimen specimen([&] {
    close_everything();
    for (;;) ++*counter;
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return *counter > 1000; }));
  {
    ASSERT_TRUE(capture_tree(specimen.pid()));
  }
  const uint64_t before = *counter;
  EXPECT_TRUE(eventually([&] { return *counter > before + 1000; }));
}

TEST(SeizedTree, PointsArePassedInOrder) {
  Specimen specimen([&] {
    close_everything();
    for (;;) pause();
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return specimen.is_in(SYS_pause); }));
  std::vector<std::string> points;
  auto tree = capture_tree(specimen.pid(), [&](std::string_view point) { points.emplace_back(point); });
  ASSERT_TRUE(tree) << tree.error().message();
  ASSERT_TRUE((*tree)->release(AfterDump::let_run));
  EXPECT_THAT(points, testing::ElementsAre("seizing", "task-seized", "seized", "walked", "looked", "infecting",
                                           "stub-written", "stub-registers", "stub-mask", "mapping-entered", "mapped",
                                           "uploaded", "agent-registers", "agent-mask", "agent-running", "agent-done",
                                           "threads-back", "unmap-registers", "unmap-mask", "unmapping", "unmapped",
                                           "registers-back", "disinfected", "captured", "releasing", "released"));
}

TEST(SeizedTree, WhatCannotBeSavedIsSaidAndNothingIsTouched) {
  Shared<std::atomic<uint64_t>> counter;
  Specimen specimen([&] {
    if (syscall(SYS_userfaultfd, UFFD_USER_MODE_ONLY) < 0) return 1;
    for (;;) ++*counter;
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return *counter > 1000; }));
  std::vector<std::string> points;
  auto tree = capture_tree(specimen.pid(), [&](std::string_view point) { points.emplace_back(point); });
  ASSERT_TRUE(tree) << tree.error().message();
  EXPECT_TRUE((*tree)->context().diagnostics.refused());
  EXPECT_THAT(points, testing::Not(testing::Contains("infecting")));
  ASSERT_TRUE((*tree)->release(AfterDump::let_run));
  const uint64_t before = *counter;
  EXPECT_TRUE(eventually([&] { return *counter > before + 1000; }));
}

}  // namespace
}  // namespace stasis::capture
