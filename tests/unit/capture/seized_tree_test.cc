// SeizedTree with all rooms of stasis, on real children.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/syscall.h>
#include <unistd.h>

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
