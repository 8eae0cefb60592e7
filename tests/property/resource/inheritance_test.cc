// Descriptors shared in random ways: each is opened once, inherited where that is less work, and taken elsewhere.
#include <gtest/gtest.h>

#include <rapidcheck/gtest.h>

#include <algorithm>
#include <random>

#include "plan/planner.h"
#include "plan/verify.h"
#include "resource/registry.h"
#include "sample_tree.h"

namespace stasis::plan {
namespace {

class Maker : public DescriptionMaker {
 public:
  explicit Maker(bool inheritable) : inheritable_(inheritable) {}
  std::string_view kind() const override { return "fake"; }
  bool can_be_inherited(const model::OpenDescription&) const override { return inheritable_; }
  Status make(const model::Application&, std::span<const Placement> placements, Sink& sink) const override {
    for (const auto& placement : placements) sink.add(Open{"/fake", 0, 0, placement.fd, placement.description->id});
    return {};
  }

 private:
  bool inheritable_;
};

constexpr pid_t root = 100;
constexpr uint32_t first_description = 100'000;

/// Processes drop most of what they are born with, keep some under other numbers, and open some of their own.
class SharingTree : public SampleTree {
 public:
  SharingTree(uint64_t seed, int processes, uint32_t descriptions) : random_(seed) {
    application_.root = Pid{root};
    add(root, 0, root, root);
    held_.resize(static_cast<size_t>(processes));
    // Half of them are the root's, as those of a server that forks its workers.
    for (; next_ < descriptions / 2; ++next_) hold(0, static_cast<int>(next_));
    for (int index = 1; index < processes; ++index) {
      const int parent = below(index);
      add(root + index, root + parent, root, root);
      inherit(static_cast<size_t>(parent), static_cast<size_t>(index));
      const uint32_t own = (descriptions - next_) / static_cast<uint32_t>(processes - index);
      for (uint32_t i = 0; i < own; ++i, ++next_)
        hold(static_cast<size_t>(index), free_number(static_cast<size_t>(index)));
    }
  }

 private:
  int below(int limit) { return std::uniform_int_distribution(0, limit - 1)(random_); }
  void hold(size_t process, int fd) { place(process, fd, first_description + next_); }
  void place(size_t process, int fd, uint32_t id) {
    open(static_cast<pid_t>(root + process), fd, id);
    held_[process].emplace_back(fd, id);
    if (below(20) == 0) open(static_cast<pid_t>(root + process), free_number(process), id);  // and a dup
  }
  int free_number(size_t process) {
    const auto& slots = application_.descriptor_tables.at(ObjectId{static_cast<uint32_t>(root + process)}).slots;
    int fd = below(64);
    while (slots.contains(fd)) ++fd;
    return fd;
  }
  void inherit(size_t parent, size_t child) {
    const int kept = below(40);
    for (int i = 0; i < kept && !held_[parent].empty(); ++i) {
      const auto [fd, id] = held_[parent][static_cast<size_t>(below(static_cast<int>(held_[parent].size())))];
      const auto& slots = application_.descriptor_tables.at(ObjectId{static_cast<uint32_t>(root + child)}).slots;
      const bool moves = below(4) == 0 || slots.contains(fd);
      place(child, moves ? free_number(child) : fd, id);
    }
  }

  std::mt19937_64 random_;
  uint32_t next_ = 0;
  std::vector<std::vector<std::pair<int, uint32_t>>> held_;
};

struct Work {
  std::map<ObjectId, int> opened;
  long calls = 0;  ///< that move descriptors about
};

Work work_of(const Program& program) {
  Work work;
  for (const auto& command : program.commands) {
    if (const auto* open = std::get_if<Open>(&command.action)) ++work.opened[open->description];
    if (std::holds_alternative<TransferFd>(command.action)) work.calls += 3;
    if (std::holds_alternative<Close>(command.action)) ++work.calls;
  }
  return work;
}

Program planned(const model::Application& application, const Maker& maker) {
  auto contributors = resource::contributors();
  contributors.makers = {&maker};
  auto program = make_program(application, contributors, {});
  if (!program) throw std::runtime_error(program.error().message());
  if (const auto rejection = verify(*program, application)) throw std::runtime_error(rejection->message(*program));
  return *std::move(program);
}

void is_made_well(const SharingTree& tree) {
  const Maker inheritable(true), alone(false);
  const auto inherited = work_of(planned(tree.application(), inheritable));
  const auto taken = work_of(planned(tree.application(), alone));
  std::set<ObjectId> wanted;
  for (const auto& [id, table] : tree.application().descriptor_tables)
    for (const auto& [fd, slot] : table.slots) wanted.insert(slot.description);
  for (const ObjectId id : wanted) RC_ASSERT(inherited.opened.at(id) == 1);
  RC_ASSERT(inherited.calls <= taken.calls);
}

RC_GTEST_PROP(Inheritance, OpensEachOnceAndSavesWork, (uint64_t seed)) {
  const int processes = *rc::gen::inRange(1, 60);
  is_made_well(SharingTree(seed, processes, *rc::gen::inRange(0u, 400u)));
}

/// A server's workers have what it has: nothing is taken.
TEST(Inheritance, WorkersTakeNothing) {
  SampleTree tree;
  tree.application().root = Pid{root};
  tree.add(root, 0, root, root);
  for (int fd = 0; fd < 20; ++fd) tree.open(root, fd, first_description + static_cast<uint32_t>(fd));
  for (pid_t worker = root + 1; worker <= root + 50; ++worker) {
    tree.add(worker, root, root, root);
    for (int fd = 0; fd < 20; ++fd) tree.open(worker, fd, first_description + static_cast<uint32_t>(fd));
  }
  const Maker maker(true);
  const auto program = planned(tree.application(), maker);
  for (const auto& command : program.commands) EXPECT_FALSE(std::holds_alternative<TransferFd>(command.action));
}

/// One child of many wants it: the others would have to close it.
TEST(Inheritance, WhatFewWantIsTaken) {
  SampleTree tree;
  tree.application().root = Pid{root};
  tree.add(root, 0, root, root);
  tree.open(root, 3, first_description);
  for (pid_t child = root + 1; child <= root + 10; ++child) tree.add(child, root, root, root);
  tree.open(root + 10, 3, first_description);
  const Maker maker(true);
  const auto program = planned(tree.application(), maker);
  EXPECT_EQ(
      std::ranges::count_if(program.commands,
                            [](const auto& command) { return std::holds_alternative<TransferFd>(command.action); }),
      1);
}

/// A session outlives its leader, who has to have created its members: before it dies it lets go of what it was born
/// with, or they would have it.
TEST(Inheritance, ChildrenOfTheDeadHaveNothingOfTheirs) {
  constexpr pid_t leader = root + 1, member = root + 2, workers = root + 3;
  SampleTree tree;
  tree.application().root = Pid{root};
  tree.add(root, 0, root, root).child_subreaper = true;
  auto& dead = tree.add(leader, root, leader, leader);
  dead.state = model::TaskState::zombie;
  dead.threads.clear();
  dead.descriptors = dead.fs = dead.handlers = dead.address_space = {};
  tree.add(member, root, leader, leader);
  for (int fd = 3; fd < 9; ++fd) {
    tree.open(root, fd, first_description + static_cast<uint32_t>(fd));
    for (pid_t pid = workers; pid < workers + 10; ++pid) {
      if (fd == 3) tree.add(pid, root, root, root);
      tree.open(pid, fd, first_description + static_cast<uint32_t>(fd));
    }
  }
  tree.open(member, 5, first_description + 5);
  const auto program = planned(tree.application(), Maker(true));
  EXPECT_TRUE(std::ranges::any_of(program.commands, [](const auto& command) {
    return command.pid == Pid{leader} && std::holds_alternative<Fork>(command.action);
  }));
}

TEST(Inheritance, AThousandProcessesShareTenThousand) { is_made_well(SharingTree(20261126, 1000, 10'000)); }

}  // namespace
}  // namespace stasis::plan
