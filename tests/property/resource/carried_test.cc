// Descriptor tables and working directories that processes have in common because a history of fork, clone, unshare,
// setsid and exit has made it so: each such tree is planned.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <sys/mman.h>

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
  std::string_view kind() const override { return "fake"; }
  bool can_be_inherited(const model::OpenDescription&) const override { return true; }
  Status make(const model::Application&, std::span<const Placement> placements, Sink& sink) const override {
    for (const auto& placement : placements) sink.add(Open{"/fake", 0, 0, placement.fd, placement.description->id});
    return {};
  }
};

constexpr pid_t root = 100;

/// The root is a subreaper; who ends is reaped at once.
class SharingHistory : public SampleTree {
 public:
  SharingHistory(uint64_t seed, int operations) : random_(seed) {
    application_.root = Pid{root};
    add(root, 0, root, root).child_subreaper = true;
    for (int i = 0; i < operations; ++i) operate();
    number_descriptors();
  }

 private:
  int below(size_t limit) { return std::uniform_int_distribution(0, static_cast<int>(limit) - 1)(random_); }
  bool once_in(size_t times) { return below(times) == 0; }
  void operate() {
    auto& tasks = application_.tasks;
    const auto index = static_cast<size_t>(below(tasks.size()));
    const pid_t pid = tasks[index].pid.value;
    switch (below(8)) {
      case 0:
      case 1:
      case 2:
        return fork(pid);
      case 3:
        return unshare(pid, &model::Task::descriptors);
      case 4:
        return unshare(pid, &model::Task::fs);
      case 5:
        if (pid != root && task(pid).session.value != pid) task(pid).session = task(pid).group = Pid{pid};
        return;
      default:
        if (pid != root && once_in(2)) exit(pid);
    }
  }
  void fork(pid_t creator) {
    const auto by = task(creator);
    const bool sibling = creator != root && once_in(6);
    auto& child = add(++last_, sibling ? by.parent.value : creator, by.group.value, by.session.value);
    if (!once_in(3)) child.descriptors = by.descriptors;
    if (!once_in(3)) child.fs = by.fs;
  }
  void unshare(pid_t pid, ObjectId model::Task::* kind) {
    const ObjectId fresh{static_cast<uint32_t>(++last_object_)};
    application_.descriptor_tables[fresh].id = fresh;
    application_.fs_contexts[fresh] = {fresh, ObjectId{600}, ObjectId{600}};
    task(pid).*kind = fresh;
  }
  void exit(pid_t pid) {
    std::erase_if(application_.tasks, [&](const auto& task) { return task.pid == Pid{pid}; });
    for (auto& task : application_.tasks) {
      if (task.parent == Pid{pid}) task.parent = Pid{root};
    }
  }
  /// Each table has one, which no other has.
  void number_descriptors() {
    std::set<ObjectId> used;
    for (const auto& task : application_.tasks) used.insert(task.descriptors);
    std::erase_if(application_.descriptor_tables, [&](const auto& entry) { return !used.contains(entry.first); });
    for (const auto& task : std::vector(application_.tasks.begin(), application_.tasks.end())) {
      open(task.pid.value, 7, 100'000 + task.descriptors.value);
      if (once_in(4)) map_file(task, 200'000 + static_cast<uint32_t>(below(4)));
    }
  }
  /// One that no path leads to: it has to be passed on.
  void map_file(const model::Task& task, uint32_t id) {
    describe(id);
    auto& mapping = application_.address_spaces.at(task.address_space).mappings.emplace_back();
    mapping.range = {0x10000, 0x11000};
    mapping.protection = PROT_READ, mapping.backing = model::Backing::shared_file, mapping.file = ObjectId{id};
  }

  std::mt19937_64 random_;
  pid_t last_ = root;
  int last_object_ = 10'000;
};

Result<Program> planned(const model::Application& application) {
  static const Maker maker;
  auto contributors = resource::contributors();
  contributors.makers = {&maker};
  return make_program(application, contributors, {});
}

std::string result_of(const model::Application& application) {
  const auto program = planned(application);
  if (!program) return program.error().message();
  const auto rejection = verify(*program, application);
  return rejection ? "rejected: " + rejection->message(*program) : "accepted";
}

TEST(Carried, HistoriesOfSharing) {
  for (uint64_t seed = 0; seed < 3000; ++seed)
    EXPECT_EQ(result_of(SharingHistory(seed, 4 + static_cast<int>(seed % 40)).application()), "accepted")
        << "seed " << seed;
}

/// Tables and directories of tasks that have no other memory in common.
class Shared : public testing::Test, protected SampleTree {
 protected:
  Shared() {
    application_.root = Pid{root};
    add(root, 0, root, root).child_subreaper = true;
    share(root, 1, 2);
  }
  void add_child(pid_t pid, pid_t parent, uint32_t files, uint32_t fs) {
    add(pid, parent, root, root);
    share(pid, files, fs);
  }
  void share(pid_t pid, uint32_t files, uint32_t fs) {
    task(pid).descriptors = ObjectId{files}, task(pid).fs = ObjectId{fs};
    application_.descriptor_tables[ObjectId{files}].id = ObjectId{files};
    application_.fs_contexts[ObjectId{fs}] = {ObjectId{fs}, ObjectId{600}, ObjectId{600}};
  }
};

TEST_F(Shared, with_a_sibling_and_with_the_creator) {
  add_child(101, root, 3, 20), add_child(102, root, 1, 20);
  EXPECT_EQ(result_of(application_), "accepted");
}

TEST_F(Shared, one_thing_with_one_sibling_and_another_with_another) {
  add_child(101, root, 3, 20), add_child(102, root, 4, 20), add_child(103, root, 4, 21), add_child(104, root, 1, 21);
  EXPECT_EQ(result_of(application_), "accepted");
}

/// Each pair that somebody has was new in one of the two, when the other was there already.
TEST_F(Shared, in_a_circle_of_siblings_has_no_history) {
  add_child(101, root, 3, 20), add_child(102, root, 4, 20), add_child(103, root, 4, 21), add_child(104, root, 3, 21);
  EXPECT_THAT(result_of(application_), testing::HasSubstr("with a task that is neither its creator nor its sibling"));
}

/// 103 was created by 101 or 102, who share nothing else with it, and has come to the root.
TEST_F(Shared, by_a_child_and_a_grandchild) {
  add_child(101, root, 1, 2), add_child(102, 101, 3, 20), add_child(103, root, 3, 21);
  EXPECT_EQ(result_of(application_), "accepted");
}

TEST_F(Shared, by_two_children_of_a_leader_before_and_after_setsid) {
  add_child(101, root, 3, 20), add_child(102, 101, 4, 21), add_child(103, 101, 4, 22);
  for (const pid_t pid : {101, 103}) task(pid).session = task(pid).group = Pid{101};
  EXPECT_EQ(result_of(application_), "accepted");
}

/// 101 is between 100 and 102, which have one table. Its own is that of 103, too.
class Between : public testing::Test, protected SampleTree {
 protected:
  Between() {
    application_.root = Pid{root};
    add(root, 0, root, root);
    add(101, root, root, root);
    add(103, 101, root, root);
    add(102, 101, root, root);
    for (const pid_t pid : {root, 102}) share(pid, 1);
    for (const pid_t pid : {101, 103}) share(pid, 2);
  }
  void share(pid_t pid, uint32_t object) {
    const ObjectId id{object};
    task(pid).descriptors = task(pid).fs = id;
    application_.descriptor_tables[id].id = id;
    application_.fs_contexts[id] = {id, ObjectId{600}, ObjectId{600}};
  }
  void lead(pid_t pid, std::initializer_list<pid_t> members) {
    task(pid).session = task(pid).group = Pid{pid};
    for (const pid_t member : members) task(member).session = task(member).group = Pid{pid};
  }
  /// Births and UNSHARE by 101, in order.
  std::vector<std::string> steps() const {
    const auto program = planned(application_);
    if (!program) return {program.error().message()};
    std::vector<std::string> found;
    for (const auto& [pid, tid, action] : program->commands) {
      if (pid != Pid{101}) continue;
      if (const auto* fork = std::get_if<Fork>(&action)) found.push_back(fmt::format("{}", fork->child_pid));
      if (std::holds_alternative<Unshare>(action)) found.emplace_back("unshare");
    }
    return found;
  }
};

TEST_F(Between, comes_to_its_own_when_it_has_created_the_one_and_before_the_other) {
  EXPECT_EQ(result_of(application_), "accepted");
  EXPECT_EQ(steps(), (std::vector<std::string>{"102", "unshare", "103"}));
}

TEST_F(Between, leads_a_session_in_which_its_own_is_shared) {
  lead(101, {103});
  EXPECT_EQ(result_of(application_), "accepted");
  EXPECT_EQ(steps(), (std::vector<std::string>{"102", "unshare", "103"}));
}

/// What it has when it becomes a leader is all that comes into its session.
TEST_F(Between, cannot_have_both_in_the_wrong_order) {
  lead(101, {102});
  EXPECT_THAT(result_of(application_), testing::HasSubstr("shares its descriptor table with a task that is neither"));
}

/// 104 was created by 101, and not by the root.
TEST_F(Between, has_in_common_with_a_sibling_what_came_later) {
  add(104, root, root, root);
  share(104, 2);
  EXPECT_EQ(result_of(application_), "accepted");
}

/// Memory is left by execve alone.
TEST_F(Between, has_memory_of_its_own) {
  task(102).address_space = task(root).address_space;
  EXPECT_THAT(result_of(application_), testing::HasSubstr("shares its memory with a task that is neither its creator "
                                                          "nor its sibling: those between them have left it, which "
                                                          "takes execve and is not planned"));
}

}  // namespace
}  // namespace stasis::plan
