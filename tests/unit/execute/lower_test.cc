// What single commands become.
#include "execute/lower.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <algorithm>

namespace stasis::execute {
namespace {

constexpr Pid root{500};
constexpr AddressRange area{0x7000'0000'0000, 0x7000'0010'0000};

/// The instructions of a root that runs one action, those of its birth left out.
class Lowering : public testing::Test {
 protected:
  Lowering() {
    program.agent_area = area;
    program.images_fd = 100;
    program.commands.push_back({Pid{0}, Tid{0}, plan::Fork{root, {}, false, false, false, false, false}});
  }

  std::vector<agent::Instruction> lowered(plan::Action action) {
    program.commands.push_back({root, leader_of(root), std::move(action)});
    auto result = lower(program, application, options);
    if (!result) {
      ADD_FAILURE() << result.error().message();
      return {};
    }
    auto& slot = result->slots.at(result->slot_of.at({root, leader_of(root)}));
    std::vector<agent::Instruction> found;
    for (uint32_t i = 0; i < slot.size(); ++i) {
      if (slot.instruction(i).origin == 1) found.push_back(slot.instruction(i));
    }
    last = std::move(*result);
    return found;
  }

  plan::Program program;
  model::Application application;
  LowerOptions options;
  Lowered last;
};

TEST_F(Lowering, PagesAreReadInCallsOfAtMost1024Pieces) {
  plan::LoadPages load{7, 4096, {}};
  for (uint64_t i = 0; i < 2500; ++i) {
    load.runs.push_back(0x10000000 + i * 8192);
    load.runs.push_back(4096);
  }
  const auto made = lowered(load);
  ASSERT_EQ(made.size(), 3u);
  const uint64_t pieces[] = {1024, 1024, 452};
  uint64_t offset = 4096;
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(made[i].number, static_cast<uint32_t>(SYS_preadv));
    EXPECT_EQ(made[i].args[2], pieces[i]);
    EXPECT_EQ(made[i].args[3], offset);
    EXPECT_EQ(made[i].expect, agent::Expect::exactly);
    EXPECT_EQ(made[i].expected, static_cast<int64_t>(pieces[i] * 4096));
    offset += pieces[i] * 4096;
  }
}

TEST_F(Lowering, PagesAreReadInCallsOfAtMostOneGibibyte) {
  const auto made = lowered(plan::LoadPages{7, 0, {0x10000000, 5ull << 29}});
  ASSERT_EQ(made.size(), 3u);
  EXPECT_EQ(made[0].expected, 1ll << 30);
  EXPECT_EQ(made[1].expected, 1ll << 30);
  EXPECT_EQ(made[2].expected, 1ll << 29);
  EXPECT_EQ(made[2].args[3], 2ull << 30);
}

TEST_F(Lowering, HalfARunIsRefused) {
  program.commands.push_back({root, leader_of(root), plan::LoadPages{7, 0, {4096}}});
  EXPECT_FALSE(lower(program, application, options));
}

TEST_F(Lowering, ACommandOfATaskThatNobodyCreatesIsRefused) {
  program.commands.push_back({Pid{501}, Tid{501}, plan::SetSid{}});
  const auto result = lower(program, application, options);
  ASSERT_FALSE(result);
  EXPECT_THAT(result.error().message(), testing::HasSubstr("501"));
}

TEST_F(Lowering, ClearingLeavesTheAgentAreaAlone) {
  const auto made = lowered(plan::ClearMemory{});
  ASSERT_GE(made.size(), 2u);
  for (const auto& one : made) {
    if (one.number != SYS_munmap) continue;
    const AddressRange removed{one.args[0], one.args[0] + one.args[1]};
    EXPECT_FALSE(removed.overlaps(area));
  }
}

TEST_F(Lowering, MappingsNeverReplaceOthers) {
  const auto made = lowered(plan::MmapAnon{0x10000000, 4096, false, 3, 0});
  ASSERT_EQ(made.size(), 1u);
  EXPECT_TRUE(made[0].args[3] & 0x100000) << "MAP_FIXED_NOREPLACE";
  EXPECT_EQ(made[0].expect, agent::Expect::exactly);
  EXPECT_EQ(made[0].expected, 0x10000000);
}

TEST_F(Lowering, EventsBecomeCountersOfTheirOwn) {
  program.commands.push_back({root, leader_of(root), plan::Post{"a"}});
  program.commands.push_back({Pid{0}, Tid{0}, plan::Await{"b", 2}});
  program.commands.push_back({root, leader_of(root), plan::Post{"b"}});
  program.commands.push_back({Pid{0}, Tid{0}, plan::Await{"a", 1}});
  auto result = lower(program, application, options);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->counter_count, 3u) << "counter 0 is that of READY";
  auto& supervisor = result->slots[0];
  const auto await_b = supervisor.instruction(supervisor.size() - 2),
             await_a = supervisor.instruction(supervisor.size() - 1);
  EXPECT_NE(await_a.args[0], await_b.args[0]);
  EXPECT_NE(await_a.args[0], agent::ready_counter);
  EXPECT_EQ(await_b.args[1], 2u);
}

TEST_F(Lowering, AnEndBySignalWritesNoCore) {
  const auto made = lowered(plan::Exit{SIGSEGV});
  ASSERT_EQ(made.size(), 3u);
  EXPECT_EQ(made[0].operation, agent::Operation::post);  // the tree is not complete before
  EXPECT_EQ(made[0].args[0], agent::ready_counter);
  EXPECT_EQ(made[1].number, static_cast<uint32_t>(SYS_prlimit64));
  EXPECT_EQ(made[2].operation, agent::Operation::exit);
  EXPECT_EQ(made[2].args[1], static_cast<uint64_t>(SIGSEGV));
}

TEST_F(Lowering, AThreadEndsAlone) {
  const auto made = lowered(plan::ExitThread{7 << 8});
  ASSERT_EQ(made.size(), 2u);
  EXPECT_EQ(made[0].operation, agent::Operation::post);  // it counts among those who are ready
  EXPECT_EQ(made[0].args[0], agent::ready_counter);
  EXPECT_EQ(made[1].operation, agent::Operation::exit);
  EXPECT_EQ(made[1].args[0], 2u);
  EXPECT_EQ(made[1].args[1], 7u);
}

/// The guard is a parent-death signal, which the end of the leader would send.
TEST_F(Lowering, ChildrenOfALeaderThatEndsAreNotGuarded) {
  const Pid child{501};
  model::Task parent, made;
  parent.pid = root, parent.threads.resize(2);
  made.pid = child, made.parent = root, made.threads.resize(1);
  application.tasks = {parent, made};
  const auto guards = [&] {
    lowered(plan::Fork{child, {}, false, false, false, false, false});
    program.commands.pop_back();
    auto& slot = last.slots.at(last.slot_of.at({child, leader_of(child)}));
    return slot.size();
  };
  EXPECT_EQ(guards(), 1u);
  application.tasks[0].threads[0].exit_status = 0;
  EXPECT_EQ(guards(), 0u);
}

TEST_F(Lowering, TheFailingCommandFailsAndNoOther) {
  options.fail_at_command = 1;
  const auto made = lowered(plan::SetSid{});
  ASSERT_EQ(made.size(), 1u);
  EXPECT_NE(made[0].number, static_cast<uint32_t>(SYS_setsid));
  EXPECT_EQ(made[0].expect, agent::Expect::success);
}

TEST_F(Lowering, ACommandWithoutCallsCanFailToo) {
  options.fail_at_command = 1;
  EXPECT_EQ(lowered(plan::Ready{}).size(), 1u);
}

TEST_F(Lowering, FilteredThreadsWaitWithoutSystemCalls) {
  model::Task task;
  task.pid = root;
  task.threads.resize(1);
  task.threads[0].tid = leader_of(root);
  task.threads[0].seccomp.mode = model::Seccomp::Mode::filter;
  application.tasks.push_back(task);
  lowered(plan::Ready{});
  EXPECT_EQ(last.slots.at(last.slot_of.at({root, leader_of(root)})).end_mode(), agent::EndMode::park_spinning);
  EXPECT_EQ(last.ready_threads, 1u);
}

}  // namespace
}  // namespace stasis::execute
