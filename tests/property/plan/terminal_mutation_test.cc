// The verifier against wrong programs for trees with terminals: a correct one with a command left out, doubled, given
// to another process or changed.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "plan/bare_tree.h"
#include "plan/tree_history.h"
#include "plan/verify.h"

namespace stasis::plan {
namespace {

constexpr uint64_t seeds = 60;
constexpr unsigned operations = 150;

template <typename Check>
void for_each_tree(Check check) {
  size_t with_foreground = 0;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    const auto tree = random_history(seed, operations, seed % 2 == 0, true).tree;
    const auto program = make_tree_program(tree);
    ASSERT_TRUE(program) << program.error().message() << "\n" << tree_to_json(tree);
    const auto rejection = verify(*program, tree, Extent::tree);
    ASSERT_FALSE(rejection) << rejection->message(*program) << "\n" << tree_to_json(tree) << to_text(*program);
    with_foreground += std::ranges::any_of(tree.terminals, [](const auto& entry) {
      return entry.second.foreground != entry.second.session && entry.second.foreground.value != 0;
    });
    check(tree, *program);
  }
  EXPECT_GT(with_foreground, 3u) << "there are too few such trees to tell anything";
}

bool is_of_terminals(const Action& action) {
  return std::holds_alternative<OpenTerminal>(action) || std::holds_alternative<SetControllingTerminal>(action) ||
         std::holds_alternative<LeaveTerminal>(action) || std::holds_alternative<SetForegroundGroup>(action);
}

/// Mutants of every command that is about terminals.
template <typename Mutate>
void expect_rejected(Mutate mutate) {
  for_each_tree([&](const model::Application& tree, const Program& program) {
    for (size_t index = 0; index < program.commands.size(); ++index) {
      if (!is_of_terminals(program.commands[index].action)) continue;
      auto mutant = program;
      if (!mutate(mutant, index, tree)) continue;
      EXPECT_TRUE(verify(mutant, tree, Extent::tree)) << index << "\n" << to_text(program);
    }
  });
}

/// What is in the foreground when nobody is to be there is seen by nobody.
bool is_free_choice(const model::Application& tree, const Command& command) {
  const auto* set = std::get_if<SetForegroundGroup>(&command.action);
  return set != nullptr && tree.find(set->pgid) == nullptr &&
         std::ranges::none_of(tree.tasks, [&](const auto& task) { return task.group == set->pgid; });
}

TEST(TerminalMutations, ACommandLeftOutIsNoticed) {
  expect_rejected([](Program& mutant, size_t index, const model::Application&) {
    mutant.commands.erase(mutant.commands.begin() + static_cast<ptrdiff_t>(index));
    return true;
  });
}

TEST(TerminalMutations, ACommandDoneTwiceIsNoticed) {
  expect_rejected([](Program& mutant, size_t index, const model::Application&) {
    const auto twice = mutant.commands[index];
    mutant.commands.insert(mutant.commands.begin() + static_cast<ptrdiff_t>(index), twice);
    return true;
  });
}

TEST(TerminalMutations, ACommandByTheRootIsNoticed) {
  expect_rejected([](Program& mutant, size_t index, const model::Application& tree) {
    auto& command = mutant.commands[index];
    if (command.pid == tree.root) return false;
    command.pid = tree.root, command.tid = leader_of(tree.root);
    return true;
  });
}

TEST(TerminalMutations, AnotherTerminalOrGroupIsNoticed) {
  expect_rejected([](Program& mutant, size_t index, const model::Application& tree) {
    auto& command = mutant.commands[index];
    if (auto* open = std::get_if<OpenTerminal>(&command.action)) open->terminal += 1000;
    if (auto* set = std::get_if<SetControllingTerminal>(&command.action)) set->fd += 2;
    if (auto* leave = std::get_if<LeaveTerminal>(&command.action)) leave->fd += 2;
    if (auto* set = std::get_if<SetForegroundGroup>(&command.action)) {
      if (is_free_choice(tree, command)) return false;
      set->pgid = command.pid;
    }
    return true;
  });
}

/// Children that are born before the terminal is there do not get it.
TEST(TerminalMutations, ATerminalAcquiredTooLateIsNoticed) {
  expect_rejected([](Program& mutant, size_t index, const model::Application& tree) {
    const auto command = mutant.commands[index];
    if (!std::holds_alternative<SetControllingTerminal>(command.action)) return false;
    const auto is_controlled = [&](const model::Task& task) {
      return task.session == command.pid && task.pid != command.pid && task.controlling_terminal != 0;
    };
    if (std::ranges::none_of(tree.tasks, is_controlled)) return false;
    const auto last = std::find_if(mutant.commands.rbegin(), mutant.commands.rend(), [&](const Command& other) {
      return other.pid == command.pid && created_by(other.action);
    });
    mutant.commands.insert(last.base(), command);
    mutant.commands.erase(mutant.commands.begin() + static_cast<ptrdiff_t>(index));
    return true;
  });
}

/// Whose terminal hangs up when its leader ends is sent SIGHUP.
TEST(TerminalMutations, AHangUpIsNoticed) {
  const auto program = from_json(R"({"commands": [
    {"command": "FORK", "pid": 0, "child_pid": 1, "new_pid_namespace": true},
    {"command": "SET_SID", "pid": 1},
    {"command": "FORK", "pid": 1, "child_pid": 2},
    {"command": "SET_SID", "pid": 2},
    {"command": "OPEN_TERMINAL", "pid": 2, "terminal": 34816, "description": 0, "flags": 2, "master_fd": 3, "slave_fd": 4},
    {"command": "SET_CONTROLLING_TERMINAL", "pid": 2, "fd": 4},
    {"command": "FORK", "pid": 2, "child_pid": 3},
    {"command": "EXIT", "pid": 2}]})");
  ASSERT_TRUE(program) << program.error().message();
  const auto outcome = outcome_of(completed(*program));
  ASSERT_TRUE(outcome.rejection);
  EXPECT_EQ(outcome.rejection->rule, "3, in the foreground of its terminal, would be sent SIGHUP");
}

/// The rule that a session's terminal of the machine (4:41) breaks, opened like this; empty: none.
std::string rule_of(uint64_t terminal, int master_fd, std::string_view path) {
  const auto program = from_json(fmt::format(
      R"({{"commands": [
    {{"command": "FORK", "pid": 0, "child_pid": 1, "new_pid_namespace": true}},
    {{"command": "SET_SID", "pid": 1}},
    {{"command": "OPEN_TERMINAL", "pid": 1, "terminal": {}, "master_fd": {}, "slave_fd": 4, "path": "{}"}},
    {{"command": "SET_CONTROLLING_TERMINAL", "pid": 1, "fd": 4}}]}})",
      terminal, master_fd, path));
  EXPECT_TRUE(program) << program.error().message();
  const auto outcome = outcome_of(completed(*program));
  return outcome.rejection ? outcome.rejection->rule : "";
}

TEST(TerminalMutations, OneOfTheMachineIsOpenedByItsPathAlone) {
  constexpr uint64_t of_machine = 0x429, pair = 34816;
  EXPECT_EQ(rule_of(of_machine, -1, "/dev/tty41"), "");
  EXPECT_EQ(rule_of(of_machine, -1, ""), "0x429 is not the device number of a pseudo-terminal (ENXIO)");
  constexpr auto either = "a pseudo-terminal is not opened by a path, and no other has a master side";
  EXPECT_EQ(rule_of(of_machine, 3, "/dev/tty41"), either);
  EXPECT_EQ(rule_of(pair, -1, "/dev/pts/0"), either);
}

}  // namespace
}  // namespace stasis::plan
