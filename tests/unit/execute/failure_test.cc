// Restores that fail, and those that die: nothing may be left.
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "plan/contributor.h"
#include "workshop.h"

namespace stasis::execute {
namespace {

using plan::call;
using plan::expecting;

/// Every kind of command that these tests can do without a planner, over three processes and a thread.
class Failures : public Workshop {
 protected:
  void write_program() {
    pids = free_pids(5);
    root = pids[0], child = pids[1], grandchild = pids[2], thread_id = pids[3], zombie_id = pids[4];
    supervisor(perform({call(SYS_openat, AT_FDCWD, plan::text(file("prepared")), O_CREAT | O_WRONLY, 0600),
                        call(SYS_close, plan::ResultOf{-1})}));
    begin(root);
    does(root, plan::SetSid{});
    does(root, fork_of(zombie_id));
    does(zombie_id, plan::Exit{3 << 8});
    does(root, fork_of(child));
    does(child, plan::SetPgid{child, child});
    does(child, fork_of(grandchild));
    does(root, plan::Open{"/dev/null", O_RDWR, 0, 5, {}});
    does(root, plan::Post{"open"});
    does(child, plan::Await{"open", 1});
    does(child, plan::TransferFd{root, child, 5, 6, false});
    does(root, plan::StartThread{Tid{thread_id.value}, {}});
    for (const Pid pid : {root, child, grandchild}) does(pid, plan::Post{"complete"});
    does(root, Tid{thread_id.value}, plan::Post{"complete"});
    supervisor(plan::Await{"complete", 4});
    supervisor(perform({call(SYS_unlinkat, AT_FDCWD, plan::text(file("prepared")), 0)}));
    supervisor(plan::Post{"settled"});
    for (const Pid pid : {root, child, grandchild}) does(pid, plan::Await{"settled", 1});
    does(root, Tid{thread_id.value}, plan::Await{"settled", 1});
    does(root, Tid{thread_id.value}, plan::Ready{});
    for (const Pid pid : {root, child, grandchild}) ready(pid);

    auto& leader = task(root, Pid{0}, code_pause);
    leader.threads.push_back(thread(Tid{thread_id.value}, address_of(code_pause)));
    task(child, root, code_pause);
    task(grandchild, child, code_pause);
    auto& zombie = task(zombie_id, root, code_pause);
    zombie.state = model::TaskState::zombie;
    zombie.threads.clear();
  }

  /// A restore of one process with this pid fails for this reason.
  void expect_taken(pid_t pid, const std::string& reason) {
    write_program();
    program.commands.clear();
    application = {};
    begin(Pid{pid});
    ready(Pid{pid});
    task(Pid{pid}, Pid{0}, code_pause);
    const auto built = build();
    ASSERT_FALSE(built);
    EXPECT_EQ(built.error().code(), ErrorCode::conflict);
    EXPECT_THAT(built.error().message(), testing::HasSubstr(reason));
    EXPECT_FALSE(built.error().advice().empty());
  }

  std::vector<Pid> pids;
  Pid root, child, grandchild, thread_id, zombie_id;
};

TEST_F(Failures, OfEachCommandInTurnLeaveNothing) {
  write_program();
  for (size_t index = 0; index < program.commands.size(); ++index) {
    options.fail_at_command = static_cast<int>(index);
    const auto built = build();
    const std::string when = fmt::format("command {} {}", index, plan::name_of(program.commands[index].action));
    ASSERT_FALSE(built) << when << " was to fail";
    EXPECT_THAT(built.error().message(), testing::HasSubstr(fmt::format("command {} ", index)));
    EXPECT_EQ(built.error().errno_value(), EBADF) << when << ": " << built.error().message();
    expect_nothing_left(pids, when);
    if (HasFailure()) return;
  }
  options.fail_at_command = -1;
  const auto done = build_and_resume();
  ASSERT_TRUE(done) << "the same program runs afterwards: " << done.error().message();
  EXPECT_FALSE(std::filesystem::exists(file("prepared")));
}

/// A file is made for the time of the restore: exclusively, filled by these calls, and removed at the end.
class Undoing : public Failures {
 protected:
  static plan::Perform undoing(plan::Perform made, const std::string& purpose) {
    made.undoes.push_back(purpose);
    return made;
  }
  void write_program(plan::Calls fill, const std::string& attribute = {}) {
    root = free_pids(1)[0];
    made_by = {call(SYS_openat, AT_FDCWD, plan::text(file("made")), O_CREAT | O_EXCL | O_WRONLY, 0600),
               call(SYS_close, plan::ResultOf{-1})};
    std::ranges::move(fill, std::back_inserter(made_by));
    supervisor(plan::Perform{"make a file", "", {}, {}, made_by});
    begin(root);
    does(root, plan::Post{"complete"});
    supervisor(plan::Await{"complete", 1});
    supervisor(undoing(perform({call(SYS_unlinkat, AT_FDCWD, plan::text(file("made")), 0)}, attribute), "make a file"));
    ready(root);
    task(root, Pid{0}, code_pause);
  }
  bool is_there() const { return std::filesystem::exists(file("made")); }
  plan::Calls made_by;
};

TEST_F(Undoing, LeavesAStrangersFileAlone) {
  write_program({});
  std::ofstream(file("made")) << "a stranger's";
  const auto built = build();
  ASSERT_FALSE(built);
  EXPECT_EQ(built.error().errno_value(), EEXIST);
  EXPECT_TRUE(is_there());
}

TEST_F(Undoing, RemovesWhatCouldNotBeFilled) {
  write_program({call(SYS_fsync, -1)});
  ASSERT_FALSE(build());
  EXPECT_FALSE(is_there());
}

TEST_F(Undoing, IsNotDoneTwice) {
  write_program({});
  supervisor(plan::Perform{"come as a stranger", std::string(plan::only_on_success), {}, {}, made_by});
  supervisor(perform({call(SYS_fsync, -1)}));
  ASSERT_FALSE(build());
  EXPECT_TRUE(is_there()) << "it is removed again after its name has been given away";
}

TEST_F(Undoing, OnlyOnFailureIsDoneForATreeThatIsNeverResumed) {
  write_program({}, std::string(plan::only_on_failure));
  const auto built = build();
  ASSERT_TRUE(built) << built.error().message();
  EXPECT_TRUE(is_there());
  tree.reset();
  EXPECT_FALSE(is_there());
}

TEST_F(Failures, OfTheHookUndoEverything) {
  write_program();
  options.before_resume = [](pid_t) -> Status { return fail(Error::conflict("run the script", "it said no")); };
  const auto built = build();
  ASSERT_FALSE(built);
  EXPECT_THAT(built.error().message(), testing::HasSubstr("it said no"));
  expect_nothing_left(pids, "after the hook");
}

TEST_F(Failures, ATreeThatIsNeverResumedGoesAway) {
  write_program();
  const auto built = build();
  ASSERT_TRUE(built) << built.error().message();
  tree.reset();
  expect_nothing_left(pids, "after the guard");
}

TEST_F(Failures, APidThatIsTakenIsNamed) {
  const pid_t other = fork();
  if (other == 0) {
    for (;;) pause();
  }
  expect_taken(other, fmt::format("pid {} is taken by process {} ", other, other));
  kill(other, SIGKILL);
  waitpid(other, nullptr, 0);
}

TEST_F(Failures, APidThatIsTakenByAGroupIsNamed) {
  const pid_t leader = fork();
  if (leader == 0) {
    for (;;) pause();
  }
  const pid_t member = fork();
  if (member == 0) {
    for (;;) pause();
  }
  ASSERT_EQ(setpgid(leader, leader), 0);
  ASSERT_EQ(setpgid(member, leader), 0);
  kill(leader, SIGKILL);
  waitpid(leader, nullptr, 0);
  expect_taken(leader, fmt::format("pid {} is taken by the process group of process {} ", leader, member));
  kill(member, SIGKILL);
  waitpid(member, nullptr, 0);
}

TEST_F(Failures, ChildrenThatAreNotOfTheTreeLiveOn) {
  const pid_t bystander = fork();
  if (bystander == 0) {
    for (;;) pause();
  }
  write_program();
  options.fail_at_command = static_cast<int>(program.commands.size()) - 1;
  EXPECT_FALSE(build());
  int status = 0;
  EXPECT_EQ(waitpid(bystander, &status, WNOHANG), 0) << "killed or reaped by a restore that it has nothing to do with";
  kill(bystander, SIGKILL);
  waitpid(bystander, nullptr, 0);
}

TEST_F(Failures, ATaskThatDiesIsNoticed) {
  write_program();
  // The grandchild ends where the program does not say so: everybody else would wait for it for ever.
  auto& commands = program.commands;
  const auto at = std::ranges::find_if(commands, [&](const auto& command) {
    return command.pid == grandchild && std::holds_alternative<plan::Post>(command.action);
  });
  commands.insert(
      at, plan::Command{grandchild, leader_of(grandchild), perform({call(SYS_kill, grandchild.value, SIGKILL)})});
  const auto built = build();
  ASSERT_FALSE(built);
  EXPECT_THAT(built.error().message(), testing::HasSubstr(fmt::format(
                                           "of task {0}, thread {0}): the task died in the middle of it", grandchild)));
  expect_nothing_left(pids, "after a death");
}

TEST_F(Failures, ATaskOfANamespaceThatDiesIsNoticed) {
  begin(Pid{1}, true);
  does(Pid{1}, fork_of(Pid{40}));
  does(Pid{40}, perform({call(SYS_exit_group, 1)}));
  does(Pid{40}, plan::Post{"complete"});
  does(Pid{1}, plan::Await{"complete", 1});
  ready(Pid{1});
  ready(Pid{40});
  task(Pid{1}, Pid{0}, code_pause);
  task(Pid{40}, Pid{1}, code_pause);
  const auto built = build();
  ASSERT_FALSE(built);
  EXPECT_THAT(built.error().message(), testing::HasSubstr("of task 40, thread 40): the task died in the middle of it"));
  expect_nothing_left({}, "after a death in a namespace");
}

TEST_F(Failures, AThreadOfANamespaceThatDiesIsNoticed) {
  begin(Pid{1}, true);
  does(Pid{1}, plan::StartThread{Tid{40}, {}});
  does(Pid{1}, Tid{40}, perform({call(SYS_exit, 0)}));
  does(Pid{1}, Tid{40}, plan::Post{"complete"});
  does(Pid{1}, Tid{40}, plan::Ready{});
  does(Pid{1}, plan::Await{"complete", 1});
  ready(Pid{1});
  task(Pid{1}, Pid{0}, code_pause).threads.push_back(thread(Tid{40}, address_of(code_pause)));
  const auto built = build();
  ASSERT_FALSE(built);
  EXPECT_THAT(built.error().message(), testing::HasSubstr("of task 1, thread 40): the task died in the middle of it"));
  expect_nothing_left({}, "after a death in a namespace");
}

/// Without the agent's memory it has no first instruction.
TEST_F(Failures, ATaskThatDiesBeforeItsFirstInstructionIsNoticed) {
  for (const bool in_namespace : {false, true}) {
    program.commands.clear(), application = {};
    const auto free = free_pids(2);
    const Pid root = in_namespace ? Pid{1} : free[0], child = in_namespace ? Pid{40} : free[1];
    const rlimit no_core{0, 0};
    begin(root, in_namespace);
    does(root, perform({call(SYS_prlimit64, 0, RLIMIT_CORE, plan::struct_in(no_core), 0),
                        call(SYS_madvise, program.agent_area.begin, program.agent_area.size(), MADV_DONTFORK)}));
    does(root, fork_of(child));
    does(child, plan::Post{"complete"});
    does(root, plan::Await{"complete", 1});
    ready(root);
    ready(child);
    task(root, Pid{0}, code_pause);
    task(child, root, code_pause);
    const auto built = build();
    ASSERT_FALSE(built);
    EXPECT_THAT(built.error().message(),
                testing::HasSubstr(fmt::format("of task {0}, thread {0}): the task died before it had begun", child)));
    if (!in_namespace) expect_nothing_left({root, child}, "after an early death");
  }
}

TEST_F(Failures, AProgramThatHangsIsEnded) {
  const auto pids = free_pids(2);
  const auto [one, other] = std::tuple(pids[0], pids[1]);
  begin(one);
  does(one, fork_of(other));
  does(other, plan::Await{"never", 1});
  does(one, perform({call(SYS_ppoll, 0, 0, 0, 0, 0)}));
  ready(one);
  ready(other);
  task(one, Pid{0}, code_pause);
  task(other, one, code_pause);
  options.patience = std::chrono::seconds(1);
  const auto built = build();
  ASSERT_FALSE(built);
  EXPECT_THAT(built.error().message(), testing::AllOf(testing::HasSubstr("nothing has moved for 1 s"),
                                                      testing::HasSubstr(fmt::format("AWAIT of task {}", other)),
                                                      testing::HasSubstr(fmt::format("PERFORM of task {}", one))));
  expect_nothing_left(pids, "after a stand-still");
}

/// One long instruction: nothing of the program moves while the bytes come, which is longer than anybody is waited for.
TEST_F(Failures, WhoWorksIsNotEnded) {
  const Pid root = free_pids(1)[0];
  const std::string path = file("slow");
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const UniqueFd feeding(open(path.c_str(), O_RDWR | O_CLOEXEC));
  options.patience = std::chrono::milliseconds(600);
  constexpr int parts = 40;
  std::chrono::steady_clock::duration longest{};
  std::atomic<bool> has_begun = false;
  std::thread feeder([&] {
    has_begun.wait(false);
    for (int i = 0; i < parts; ++i) {
      const auto before = std::chrono::steady_clock::now();
      usleep(50'000);
      EXPECT_EQ(write(feeding.get(), "x", 1), 1);
      longest = std::max(longest, std::chrono::steady_clock::now() - before);
    }
  });
  program.agent_area = free_range(program.agent_area.size());  // the thread's stack may lie where it was
  begin(root);
  does(root, plan::Open{path, O_RDONLY, 0, 50, {}});
  does(root, perform({call(plan::Call::read_fully, 50, data_page, parts, ~0ull)}));
  does(root, plan::Close{50});
  ready(root);
  task(root, Pid{0}, code_exit_42);
  has_begun = true;
  has_begun.notify_all();
  const auto done = build_and_resume();
  feeder.join();
  std::filesystem::remove(path);
  if (longest > options.patience / 2) GTEST_SKIP() << "the machine was too busy to feed it";
  ASSERT_TRUE(done) << done.error().message();
  EXPECT_EQ(WEXITSTATUS(reap(root.value)), 42);
}

TEST_F(Failures, WhoeverIsKilledWhileRestoringTakesTheTreeAlong) {
  write_program();
  options.before_resume = [](pid_t) -> Status {
    kill(getpid(), SIGKILL);
    return {};
  };
  const pid_t restoring = fork();
  if (restoring == 0) {
    (void)build();
    _exit(1);
  }
  const int status = reap(restoring);
  EXPECT_TRUE(WIFSIGNALED(status));
  // Orphans come to us: a zombie is no longer alive.
  EXPECT_TRUE(eventually([&] {
    while (waitpid(-1, nullptr, WNOHANG | __WALL) > 0) {
    }
    return std::ranges::none_of(pids, exists);
  })) << "tasks outlive the one that was restoring them";
}

}  // namespace
}  // namespace stasis::execute
