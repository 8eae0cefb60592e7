// Whole programs, run: what is restored is there, with its numbers, and goes on where its registers say.
#include "workshop.h"

#include <unistd.h>

namespace stasis::execute {
namespace {

using plan::call;

TEST_F(Workshop, OneProcessRunsOnWhereItsRegistersSay) {
  const Pid root = free_pids(1)[0];
  begin(root);
  ready(root);
  task(root, Pid{0}, code_exit_42);
  const auto done = build_and_resume();
  ASSERT_TRUE(done) << done.error().message();
  EXPECT_EQ(tree->host_root(), root.value);
  const int status = reap(root.value);
  ASSERT_TRUE(WIFEXITED(status)) << status;
  EXPECT_EQ(WEXITSTATUS(status), 42);
}

TEST_F(Workshop, NothingOfOursStaysInTheProcess) {
  const Pid root = free_pids(1)[0];
  begin(root);
  ready(root);
  task(root, Pid{0}, code_pause);
  const auto done = build_and_resume();
  ASSERT_TRUE(done) << done.error().message();
  const auto maps = kernel::read_maps(root.value);
  ASSERT_TRUE(maps);
  std::vector<uint64_t> mapped;
  for (const auto& entry : *maps) {
    if (entry.path != "[vsyscall]") mapped.push_back(entry.range.begin);  // the kernel's, not the address space's
  }
  EXPECT_THAT(mapped, testing::ElementsAre(code_page, data_page, stack_page));
  const auto open = kernel::list_descriptors(root.value);
  ASSERT_TRUE(open);
  EXPECT_THAT(*open, testing::IsEmpty());
  const auto status = kernel::read_status(root.value);
  ASSERT_TRUE(status);
  EXPECT_EQ(status->blocked, 0u);
  EXPECT_EQ(status->caught, 0u);
  EXPECT_EQ(status->ignored, 0u);
  EXPECT_EQ(status->tracer, 0);
}

TEST_F(Workshop, TheMaskIsTheThreadsOwn) {
  const Pid root = free_pids(1)[0];
  begin(root);
  ready(root);
  task(root, Pid{0}, code_pause).threads[0].blocked_signals = 1ull << (SIGUSR1 - 1);
  const auto done = build_and_resume();
  ASSERT_TRUE(done) << done.error().message();
  const auto status = kernel::read_status(root.value);
  ASSERT_TRUE(status);
  EXPECT_EQ(status->blocked, 1ull << (SIGUSR1 - 1));
}

TEST_F(Workshop, ATreeHasItsParentsGroupsAndSessions) {
  const auto pids = free_pids(3);
  const auto [root, child, grandchild] = std::tuple(pids[0], pids[1], pids[2]);
  begin(root);
  does(root, plan::SetSid{});
  does(root, fork_of(child));
  does(child, plan::SetPgid{child, child});
  does(child, fork_of(grandchild));
  does(grandchild, plan::SetSid{});
  for (const Pid pid : pids) {
    ready(pid);
  }
  task(root, Pid{0}, code_pause);
  task(child, root, code_pause);
  task(grandchild, child, code_pause);
  const auto done = build_and_resume();
  ASSERT_TRUE(done) << done.error().message();
  const auto check = [](Pid pid, pid_t parent, Pid group, Pid session) {
    const auto stat = kernel::read_stat(pid.value);
    ASSERT_TRUE(stat) << pid.value;
    EXPECT_EQ(stat->ppid, parent);
    EXPECT_EQ(stat->pgrp, group.value);
    EXPECT_EQ(stat->session, session.value);
  };
  check(root, getpid(), root, root);
  check(child, root.value, child, root);
  check(grandchild, child.value, grandchild, grandchild);
}

TEST_F(Workshop, ThreadsHaveTheirIdsAndAllRun) {
  constexpr size_t count = 8;
  const auto pids = free_pids(count + 1);
  const Pid root = pids[0];
  begin(root);
  for (size_t i = 1; i <= count; ++i) does(root, plan::StartThread{Tid{pids[i].value}, {}});
  for (size_t i = 1; i <= count; ++i) does(root, Tid{pids[i].value}, plan::Ready{});
  ready(root);
  auto& made = task(root, Pid{0}, code_threads_leader, count);
  for (size_t i = 1; i <= count; ++i)
    made.threads.push_back(thread(Tid{pids[i].value}, address_of(code_threads_other)));
  const auto built = build();
  ASSERT_TRUE(built) << built.error().message();
  std::vector<pid_t> expected;
  for (const Pid pid : pids) expected.push_back(pid.value);
  const auto threads = kernel::list_threads(root.value);
  ASSERT_TRUE(threads);
  EXPECT_THAT(*threads, testing::UnorderedElementsAreArray(expected));
  const auto done = tree->resume();
  ASSERT_TRUE(done) << done.error().message();
  EXPECT_EQ(WEXITSTATUS(reap(root.value)), 43);
}

TEST_F(Workshop, TheFirstThreadEndsAloneAndTheProcessGoesOn) {
  const auto pids = free_pids(3);
  const auto [root, other, child] = std::tuple(pids[0], Tid{pids[1].value}, pids[2]);
  begin(root);
  does(root, fork_of(child));
  ready(child);
  does(root, plan::StartThread{other, {}});
  does(root, other, plan::Ready{});
  does(root, plan::Close{program.images_fd});
  does(root, plan::ExitThread{7 << 8});
  auto& made = task(root, Pid{0}, code_pause);
  made.threads[0].exit_status = 7 << 8;
  made.threads.push_back(thread(other, address_of(code_exit_42)));
  task(child, root, code_pause);
  const auto built = build();
  ASSERT_TRUE(built) << built.error().message();
  const auto leader = kernel::read_thread_stat(root.value, root.value);
  ASSERT_TRUE(leader);
  EXPECT_TRUE(leader->has_left_threads());
  EXPECT_EQ(leader->exit_code, 7 << 8);
  const auto stat = kernel::read_stat(child.value);
  ASSERT_TRUE(stat) << "its end killed the child";
  EXPECT_EQ(stat->ppid, root.value);
  const auto done = tree->resume();
  ASSERT_TRUE(done) << done.error().message();
  EXPECT_EQ(WEXITSTATUS(reap(root.value)), 42);
}

TEST_F(Workshop, TheNextThreadWaitsForTheChildrenOfTheFirst) {
  const auto pids = free_pids(3);
  const auto [root, other, child] = std::tuple(pids[0], Tid{pids[1].value}, pids[2]);
  begin(root);
  does(root, fork_of(child));
  does(root, plan::StartThread{other, {}});
  does(root, plan::Close{program.images_fd});
  does(root, plan::ExitThread{0});
  does(root, other, plan::AwaitChild{child});
  does(root, other, plan::Post{"passed on"});
  does(root, other, plan::Ready{});
  does(child, plan::Await{"passed on", 1});
  ready(child);
  auto& made = task(root, Pid{0}, code_pause);
  made.threads[0].exit_status = 0;
  made.threads.push_back(thread(other, address_of(code_exit_42)));
  task(child, root, code_pause);
  const auto built = build();
  ASSERT_TRUE(built) << built.error().message();
  const auto children = kernel::read_file(fmt::format("/proc/{}/task/{}/children", root, other));
  ASSERT_TRUE(children);
  EXPECT_EQ(*children, fmt::format("{} ", child));
  const auto done = tree->resume();
  ASSERT_TRUE(done) << done.error().message();
  EXPECT_EQ(WEXITSTATUS(reap(root.value)), 42);
}

class Zombies : public Workshop, public testing::WithParamInterface<int> {};

TEST_P(Zombies, KeepTheirStatusForTheirParent) {
  const auto pids = free_pids(2);
  const auto [root, child] = std::pair(pids[0], pids[1]);
  begin(root);
  does(root, fork_of(child));
  does(child, plan::Exit{GetParam()});
  ready(root);
  task(root, Pid{0}, code_reap, static_cast<uint64_t>(child.value));
  auto& zombie = task(child, root, code_pause);
  zombie.state = model::TaskState::zombie;
  zombie.threads.clear();
  const auto built = build();
  ASSERT_TRUE(built) << built.error().message();
  EXPECT_TRUE(eventually([&] { return state_of(child.value) == 'Z'; }));
  const auto done = tree->resume();
  ASSERT_TRUE(done) << done.error().message();
  const int status = GetParam();
  EXPECT_EQ(WEXITSTATUS(reap(root.value)), WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
}

INSTANTIATE_TEST_SUITE_P(Statuses, Zombies, testing::Values(0, 5 << 8, SIGTERM, SIGKILL, SIGSEGV, SIGRTMAX));

TEST_F(Workshop, ADescriptionIsTakenFromAnotherProcess) {
  const auto pids = free_pids(2);
  const auto [root, child] = std::pair(pids[0], pids[1]);
  begin(root);
  does(root, fork_of(child));
  does(root, plan::Open{"/dev/null", O_RDWR, 0, 5, {}});
  does(root, plan::Post{"open"});
  does(child, plan::Await{"open", 1});
  does(child, plan::TransferFd{root, child, 5, 9, true});
  does(child, plan::TransferFd{root, child, 5, 3, false});
  does(child, plan::Post{"taken"});
  does(root, plan::Await{"taken", 1});
  ready(root);
  ready(child);
  task(root, Pid{0}, code_pause);
  task(child, root, code_pause);
  const auto done = build_and_resume();
  ASSERT_TRUE(done) << done.error().message();
  for (const int fd : {3, 9}) {
    const auto order = kernel::kcmp(root.value, child.value, kernel::KcmpType::file, 5, fd);
    ASSERT_TRUE(order) << order.error().message();
    EXPECT_TRUE(*order == std::strong_ordering::equal) << fd;
  }
  const auto open = kernel::list_descriptors(child.value);
  ASSERT_TRUE(open);
  EXPECT_THAT(*open, testing::ElementsAre(3, 9)) << "no pidfd is left";
  const auto info = kernel::read_fdinfo(child.value, 9);
  ASSERT_TRUE(info);
  EXPECT_TRUE(info->flags & O_CLOEXEC);
}

TEST_F(Workshop, PagesGoWhereTheyBelong) {
  const Pid root = free_pids(1)[0];
  std::ofstream pages(file("pages"), std::ios::binary);
  pages << std::string(page_size, 'x') << std::string(page_size, '\3') << std::string(page_size, '\4');
  pages.close();
  begin(root);
  constexpr uint64_t target = 0x20000000;
  does(root, plan::MmapAnon{target, 3 * page_size, false, PROT_READ | PROT_WRITE, 0});
  does(root, plan::Open{file("pages"), O_RDONLY, 0, 50, {}});
  does(root, plan::LoadPages{50, page_size, {target, page_size, target + 2 * page_size, page_size}});
  does(root, plan::Close{50});
  ready(root);
  task(root, Pid{0}, code_exit_sum, target);
  const auto done = build_and_resume();
  ASSERT_TRUE(done) << done.error().message();
  EXPECT_EQ(WEXITSTATUS(reap(root.value)), 7);
}

TEST_F(Workshop, SupervisorAndTasksWaitForEachOther) {
  const Pid root = free_pids(1)[0];
  begin(root);
  does(root, plan::Post{"complete"});
  supervisor(plan::Await{"complete", 1});
  supervisor(plan::Post{"settled"});
  does(root, plan::Await{"settled", 1});
  ready(root);
  task(root, Pid{0}, code_exit_42);
  const auto done = build_and_resume();
  ASSERT_TRUE(done) << done.error().message();
  EXPECT_EQ(WEXITSTATUS(reap(root.value)), 42);
}

TEST_F(Workshop, TheRootIsInitOfItsNamespace) {
  begin(Pid{1}, true);
  does(Pid{1}, fork_of(Pid{77}));
  does(Pid{77}, plan::Exit{6 << 8});
  ready(Pid{1});
  task(Pid{1}, Pid{0}, code_reap, 77);
  auto& zombie = task(Pid{77}, Pid{1}, code_pause);
  zombie.state = model::TaskState::zombie;
  zombie.threads.clear();
  const auto done = build_and_resume();
  ASSERT_TRUE(done) << done.error().message();
  EXPECT_GT(tree->host_root(), 1);
  EXPECT_EQ(WEXITSTATUS(reap(tree->host_root())), 6);
}

TEST_F(Workshop, LiveChildrenOfANamespaceAreFoundByTheirIds) {
  begin(Pid{1}, true);
  does(Pid{1}, fork_of(Pid{300}));
  ready(Pid{1});
  ready(Pid{300});
  task(Pid{1}, Pid{0}, code_reap, 300);
  task(Pid{300}, Pid{1}, code_exit_42);
  const auto done = build_and_resume();
  ASSERT_TRUE(done) << done.error().message();
  EXPECT_EQ(WEXITSTATUS(reap(tree->host_root())), 42);
}

TEST_F(Workshop, AStoppedTaskEndsStopped) {
  const Pid root = free_pids(1)[0];
  begin(root);
  ready(root);
  auto& made = task(root, Pid{0}, code_exit_42);
  made.state = model::TaskState::stopped;
  made.stop_signal = SIGSTOP;
  const auto done = build_and_resume();
  ASSERT_TRUE(done) << done.error().message();
  int status = 0;
  ASSERT_EQ(waitpid(root.value, &status, WUNTRACED | __WALL), root.value);
  ASSERT_TRUE(WIFSTOPPED(status)) << "it must not have run: " << status;
  EXPECT_EQ(WSTOPSIG(status), SIGSTOP);
  kill(root.value, SIGCONT);
  EXPECT_EQ(WEXITSTATUS(reap(root.value)), 42);
}

TEST_F(Workshop, LeaveStoppedStopsEveryTask) {
  const auto pids = free_pids(2);
  begin(pids[0]);
  does(pids[0], fork_of(pids[1]));
  for (const Pid pid : pids) ready(pid);
  task(pids[0], Pid{0}, code_exit_42);
  task(pids[1], pids[0], code_pause);
  options.leave_stopped = true;
  const auto done = build_and_resume();
  ASSERT_TRUE(done) << done.error().message();
  for (const Pid pid : pids) EXPECT_TRUE(eventually([&] { return state_of(pid.value) == 'T'; })) << pid.value;
}

TEST_F(Workshop, ASiblingIsTheChildOfOurParent) {
  // A process between us and the tree does the restore: the root must then be our child, not its.
  const Pid root = free_pids(1)[0];
  begin(root);
  ready(root);
  task(root, Pid{0}, code_exit_42);
  options.sibling = true;
  const pid_t between = fork();
  ASSERT_GE(between, 0);
  if (between == 0) _exit(build_and_resume() ? 0 : 1);
  EXPECT_EQ(reap(between), 0);
  EXPECT_EQ(WEXITSTATUS(reap(root.value)), 42);
}

/// It is not found among our own descendants. It takes so long that it is looked for more than once.
TEST_F(Workshop, ASiblingThatIsANamespacesInitMayTakeItsTime) {
  begin(Pid{1}, true);
  const timespec long_enough{1, 0};
  does(Pid{1}, perform({call(SYS_nanosleep, plan::struct_in(long_enough), 0)}));
  ready(Pid{1});
  task(Pid{1}, Pid{0}, code_exit_42);
  options.sibling = true;
  const pid_t between = fork();
  ASSERT_GE(between, 0);
  if (between == 0) {
    const auto done = build_and_resume();
    if (!done) fmt::print(stderr, "{}\n", done.error().message());
    _exit(done ? 0 : 1);
  }
  EXPECT_EQ(reap(between), 0);
  int status = 0;
  EXPECT_GT(waitpid(-1, &status, __WALL), 0) << "the root is our child";
  EXPECT_EQ(WEXITSTATUS(status), 42);
}

TEST_F(Workshop, TheHookSeesEverybodyCompleteAndNobodyRunning) {
  const Pid root = free_pids(1)[0];
  begin(root);
  ready(root);
  task(root, Pid{0}, code_exit_42);
  pid_t seen = 0;
  options.before_resume = [&](pid_t pid) -> Status {
    seen = pid;
    usleep(20'000);
    EXPECT_EQ(state_of(pid), 't');
    return {};
  };
  const auto done = build_and_resume();
  ASSERT_TRUE(done) << done.error().message();
  EXPECT_EQ(seen, root.value);
  EXPECT_EQ(WEXITSTATUS(reap(root.value)), 42);
}

TEST_F(Workshop, OwnMappingsContainOurCode) {
  const auto ranges = own_mappings();
  ASSERT_TRUE(ranges);
  const auto here = reinterpret_cast<uint64_t>(workshop_code_begin);
  EXPECT_TRUE(std::ranges::any_of(*ranges, [&](const auto& range) { return range.contains(here); }));
  const auto highest = own_highest_fd();
  ASSERT_TRUE(highest);
  EXPECT_GE(*highest, images->fd());
}

}  // namespace
}  // namespace stasis::execute
