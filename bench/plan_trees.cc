// How long it takes to plan and to verify bare trees of 100 to 100 000 processes, 20 in each session, and trees of up
// to 4000 processes that random operations have led to, in which most births have to be searched for. The time per
// process should grow no faster than the logarithm of their number. plan_trees [largest]
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <optional>

#include <fmt/format.h>

#include "plan/bare_tree.h"
#include "plan/tree_history.h"
#include "plan/verify.h"

namespace {

using namespace stasis;
using Clock = std::chrono::steady_clock;

/// Sessions of 20 below an init: the leader, every tenth of them dead, and below him chains of three.
model::Application tree_of(int processes) {
  constexpr int members = 20, chain = 3, dead_every = 10;
  model::Application tree;
  tree.root = Pid{1};
  tree.root_is_namespace_init = true;
  const auto add = [&](int pid, int parent, int session) {
    auto& task = tree.tasks.emplace_back();
    task.pid = Pid{pid};
    task.parent = Pid{parent};
    task.group = task.session = Pid{session};
    task.threads.emplace_back().tid = leader_of(task.pid);
  };
  add(1, 0, 1);
  for (int leader = 2; static_cast<int>(tree.tasks.size()) < processes; leader += members) {
    const bool dead = leader / members % dead_every == 0;
    if (!dead) add(leader, 1, leader);
    for (int i = 1; i < members; ++i) add(leader + i, i % chain == 1 ? (dead ? 1 : leader) : leader + i - 1, leader);
  }
  return tree;
}

double seconds(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); }

/// false: it cannot be planned. The best of three.
bool measure(const model::Application& tree) {
  double plan = 1e9, verify = 1e9;
  for (int round = 0; round < 3; ++round) {
    const auto start = Clock::now();
    const auto program = plan::make_tree_program(tree);
    plan = std::min(plan, seconds(start));
    if (!program) return fmt::print(stderr, "{}\n", program.error().message()), false;
    const auto planned = Clock::now();
    if (const auto rejection = plan::verify(*program, tree, plan::Extent::tree))
      return fmt::print(stderr, "{}\n", rejection->message(*program)), false;
    verify = std::min(verify, seconds(planned));
  }
  const auto processes = static_cast<double>(tree.tasks.size());
  const double each = (plan + verify) * 1e6 / processes;
  fmt::print("{:>9} {:>10.1f} {:>10.1f} {:>18.2f} {:>12.2f}\n", processes, plan * 1e3, verify * 1e3, each,
             each / std::log2(processes));
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const int largest = argc > 1 ? std::atoi(argv[1]) : 100'000;
  fmt::print("{:>9} {:>10} {:>10} {:>18} {:>12}\n", "processes", "plan ms", "verify ms", "us per process",
             "over log n");
  for (int processes = 100; processes <= largest; processes *= 10) {
    if (!measure(tree_of(processes))) return 1;
  }
  fmt::print("random trees\n");
  constexpr int operations_per_process = 5;
  for (int processes = 125; processes <= std::min(largest, 4000); processes *= 2) {
    if (!measure(plan::random_history(3, static_cast<unsigned>(operations_per_process * processes), false).tree))
      return 1;
  }
  return 0;
}
