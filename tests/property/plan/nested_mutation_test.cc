// The verifier against wrong programs for trees with nested pid namespaces: a correct one with a command left out, or
// with another nested id.
#include <gtest/gtest.h>

#include <algorithm>

#include "plan/bare_tree.h"
#include "plan/tree_history.h"
#include "plan/verify.h"

namespace stasis::plan {
namespace {

constexpr uint64_t seeds = 30;
constexpr unsigned operations = 60;

template <typename Check>
void for_each_nested_tree(Check check) {
  size_t nested = 0;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    const auto tree = random_history(seed, operations, true).tree;
    if (std::ranges::all_of(tree.tasks, [](const auto& task) { return task.nested_pids.empty(); })) continue;
    ++nested;
    const auto program = make_tree_program(tree);
    ASSERT_TRUE(program) << program.error().message() << "\n" << tree_to_json(tree);
    const auto rejection = verify(*program, tree, Extent::tree);
    ASSERT_FALSE(rejection) << rejection->message(*program) << "\n" << tree_to_json(tree) << to_text(*program);
    check(tree, *program);
  }
  EXPECT_GT(nested, seeds / 2) << "there are too few such trees to tell anything";
}

/// Into a group that it cannot name itself somebody is put once.
bool is_essential(const Command& command) {
  const auto& action = command.action;
  const auto* put = std::get_if<SetPgid>(&action);
  if (put != nullptr && put->target != command.pid) return true;
  return std::holds_alternative<Fork>(action) || std::holds_alternative<Clone>(action) ||
         std::holds_alternative<StartThread>(action) || std::holds_alternative<SetSid>(action) ||
         std::holds_alternative<Exit>(action) || std::holds_alternative<Wait>(action);
}

TEST(NestedMutations, ACommandLeftOutIsNoticed) {
  for_each_nested_tree([](const model::Application& tree, const Program& program) {
    for (size_t index = 0; index < program.commands.size(); ++index) {
      if (!is_essential(program.commands[index])) continue;
      auto mutant = program;
      mutant.commands.erase(mutant.commands.begin() + static_cast<ptrdiff_t>(index));
      EXPECT_TRUE(verify(mutant, tree, Extent::tree)) << index << "\n" << to_text(program);
    }
  });
}

/// Transient processes may have any free ids.
TEST(NestedMutations, AnotherNestedIdIsNoticed) {
  for_each_nested_tree([](const model::Application& tree, const Program& program) {
    for (size_t index = 0; index < program.commands.size(); ++index) {
      const auto change = [&](auto mutate) {
        auto mutant = program;
        if (!mutate(mutant.commands[index].action)) return;
        EXPECT_TRUE(verify(mutant, tree, Extent::tree)) << index << "\n" << to_text(program);
      };
      change([&](Action& action) {
        auto* fork = std::get_if<Fork>(&action);
        if (fork == nullptr || fork->nested_pids.empty() || tree.find(fork->child_pid) == nullptr) return false;
        fork->nested_pids.back() += 100;
        return true;
      });
      change([](Action& action) {
        auto* thread = std::get_if<StartThread>(&action);
        if (thread == nullptr || thread->nested_tids.empty()) return false;
        thread->nested_tids.front() += 100;
        return true;
      });
      change([](Action& action) {
        auto* fork = std::get_if<Fork>(&action);
        if (fork == nullptr) return false;
        fork->new_pid_namespace = !fork->new_pid_namespace;
        return true;
      });
      change([](Action& action) {
        auto* fork = std::get_if<Fork>(&action);
        if (fork == nullptr) return false;
        fork->nested_pids.push_back(77);
        return true;
      });
    }
  });
}

}  // namespace
}  // namespace stasis::plan
