#include "resource/pstree.h"

#include <gmock/gmock.h>

#include <filesystem>

#include "inventory.pb.h"
#include "pstree.pb.h"
#include "resource/codec.h"
#include "resource/network_facts.h"
#include "resource/inventory.h"

namespace stasis::resource {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

class PstreeTest : public testing::Test {
 protected:
  struct Entry {
    uint32_t pid, parent;
    std::vector<uint32_t> threads = {};
    uint32_t group = 1, session = 1;
  };

  PstreeTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "stasis-pstree-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
    directory = std::make_unique<image::Directory>(std::move(*image::Directory::open(path_)));
  }
  ~PstreeTest() override { std::filesystem::remove_all(path_); }

  void write(const std::vector<Entry>& entries) {
    auto writer = directory->create("pstree.img");
    ASSERT_TRUE(writer);
    for (const Entry& entry : entries) {
      pstree_entry record;
      record.set_pid(entry.pid);
      record.set_ppid(entry.parent);
      record.set_pgid(entry.group);
      record.set_sid(entry.session);
      for (const uint32_t tid : entry.threads) record.add_threads(tid);
      ASSERT_TRUE(writer->append(record));
    }
    ASSERT_TRUE(writer->finish());
  }

  std::string error_of(const std::vector<Entry>& entries) {
    write(entries);
    const auto tasks = decode_pstree(*directory);
    return tasks ? "none" : tasks.error().message();
  }

  static std::vector<pid_t> pids(const std::vector<model::Task>& tasks) {
    std::vector<pid_t> all;
    for (const auto& task : tasks) all.push_back(task.pid.value);
    return all;
  }

  std::string path_;
  std::unique_ptr<image::Directory> directory;
};

TEST_F(PstreeTest, WritesAndReadsTasksAndThreads) {
  model::Application application;
  application.root = Pid{10};
  model::Task root{.pid = Pid{10}, .parent = Pid{4711}, .group = Pid{10}, .session = Pid{9}};
  root.threads.resize(2);
  root.threads[0].tid = Tid{10};
  root.threads[1].tid = Tid{12};
  model::Task zombie{
      .pid = Pid{11}, .parent = Pid{10}, .group = Pid{10}, .session = Pid{9}, .state = model::TaskState::zombie};
  application.tasks = {root, zombie};
  ASSERT_TRUE(encode_pstree(application, *directory));
  const auto decoded = decode_pstree(*directory);
  ASSERT_TRUE(decoded) << decoded.error().message();
  const auto* tasks = &decoded->tasks;
  ASSERT_EQ(tasks->size(), 2u);
  EXPECT_EQ((*tasks)[0].parent.value, 0) << "the root's parent is outside the tree";
  EXPECT_EQ((*tasks)[0].session.value, 9);
  ASSERT_EQ((*tasks)[0].threads.size(), 2u);
  EXPECT_EQ((*tasks)[0].threads[1].tid.value, 12);
  EXPECT_EQ((*tasks)[1].parent.value, 10);
}

TEST_F(PstreeTest, KeepsNestedPidNamespaces) {
  model::Application application;
  application.root = Pid{10};
  model::Task root{.pid = Pid{10}, .group = Pid{10}, .session = Pid{10}};
  model::Task init{.pid = Pid{11}, .parent = Pid{10}, .group = Pid{14}, .session = Pid{10}};
  init.nested_pids = {1}, init.pid_namespace = Pid{11};
  model::Task inner{.pid = Pid{12}, .parent = Pid{11}, .group = Pid{12}, .session = Pid{13}};
  inner.nested_pids = {7, 1}, inner.pid_namespace = Pid{12};
  model::Task siblings{.pid = Pid{16}, .parent = Pid{10}, .group = Pid{10}, .session = Pid{10}};
  siblings.nested_pids = {8, 1}, siblings.pid_namespace = Pid{16}, siblings.outer_namespace = Pid{11};
  root.threads = {{.tid = Tid{10}, .childrens_namespace = Pid{11}}, {.tid = Tid{15}}};
  init.parent_thread = Tid{15};
  application.tasks = {root, init, inner, siblings};
  application.dead_leaders[Pid{13}] = {{5}, Pid{11}};
  ASSERT_TRUE(encode_pstree(application, *directory));
  const auto decoded = decode_pstree(*directory);
  ASSERT_TRUE(decoded) << decoded.error().message();
  EXPECT_EQ(decoded->dead_leaders, application.dead_leaders);
  ASSERT_EQ(decoded->tasks.size(), 4u);
  EXPECT_EQ(decoded->tasks[0].childrens_namespace(), Pid{11});
  EXPECT_EQ(decoded->tasks[1].parent_thread, Tid{15});
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(decoded->tasks[i].outer_namespace, application.tasks[i].outer_namespace);
    EXPECT_EQ(decoded->tasks[i].nested_pids, application.tasks[i].nested_pids);
    EXPECT_EQ(decoded->tasks[i].pid_namespace, application.tasks[i].pid_namespace);
  }
}

TEST_F(PstreeTest, AParentMayComeAfterItsChildren) {
  write({{4, 3}, {3, 2}, {1, 0}, {5, 4}, {2, 1}});
  const auto tasks = decode_pstree(*directory);
  ASSERT_TRUE(tasks) << tasks.error().message();
  EXPECT_THAT(pids(tasks->tasks), ElementsAre(1, 2, 3, 4, 5));
}

TEST_F(PstreeTest, OtherwiseTheOrderOfTheImageStays) {
  write({{1, 0}, {9, 1}, {3, 1}, {5, 9}});
  EXPECT_THAT(pids(decode_pstree(*directory)->tasks), ElementsAre(1, 9, 3, 5));
}

TEST_F(PstreeTest, ALongLineOfAncestorsIsNoRecursion) {
  std::vector<Entry> entries;
  constexpr uint32_t count = 50'000;
  for (uint32_t pid = count; pid >= 1; --pid) entries.push_back({pid, pid - 1});
  write(entries);
  const auto tasks = decode_pstree(*directory);
  ASSERT_TRUE(tasks);
  EXPECT_EQ(tasks->tasks.front().pid.value, 1);
}

TEST_F(PstreeTest, NamesWhatIsWrong) {
  EXPECT_THAT(error_of({}), AllOf(HasSubstr("pstree.img"), HasSubstr("no task")));
  EXPECT_THAT(error_of({{1, 0}, {1, 0}}),
              AllOf(HasSubstr("record 1"), HasSubstr("field pid"), HasSubstr("1 occurs twice")));
  EXPECT_THAT(error_of({{1, 0}, {2, 0}}), AllOf(HasSubstr("field ppid"), HasSubstr("second root")));
  EXPECT_THAT(error_of({{1, 0}, {3, 2}}),
              AllOf(HasSubstr("field ppid of task 3"), HasSubstr("its parent 2 is missing")));
  EXPECT_THAT(error_of({{1, 0}, {2, 3}, {3, 2}}), AllOf(HasSubstr("field ppid"), HasSubstr("its own ancestor")));
  EXPECT_THAT(error_of({{1, 1}}), HasSubstr("its own ancestor"));
  EXPECT_THAT(error_of({{0, 0}}), AllOf(HasSubstr("field pid"), HasSubstr("0 cannot be a pid")));
  EXPECT_THAT(error_of({{0x7fffffff, 0}}), HasSubstr("cannot be a pid"));
  EXPECT_THAT(error_of({{.pid = 1, .parent = 0, .group = 0xffffffff}}), HasSubstr("field pgid"));
  EXPECT_THAT(error_of({{.pid = 1, .parent = 0, .session = 0xffffffff}}), HasSubstr("field sid"));
  EXPECT_THAT(error_of({{1, 0, {2, 1}}}), AllOf(HasSubstr("field threads"), HasSubstr("not the leader")));
  EXPECT_THAT(error_of({{1, 0, {1, 2, 2}}}), AllOf(HasSubstr("field threads"), HasSubstr("2 occurs twice")));
  EXPECT_THAT(error_of({{1, 0, {1, 2}}, {2, 1}}), AllOf(HasSubstr("field pid"), HasSubstr("2 occurs twice")));
}

TEST_F(PstreeTest, ASingleThreadIsTheLeaderWhateverItsNumber) {
  write({{1, 0, {0x6a1bf000}}});
  const auto tasks = decode_pstree(*directory);
  ASSERT_TRUE(tasks);
  ASSERT_EQ(tasks->tasks.front().threads.size(), 1);
  EXPECT_EQ(tasks->tasks.front().threads.front().tid.value, 1);
}

TEST_F(PstreeTest, TheInventorySaysWhetherItCanBeRead) {
  EXPECT_THAT(read_inventory(*directory).error().message(), AllOf(HasSubstr("inventory.img"), HasSubstr("-D")));
  ASSERT_TRUE(commit(model::Application{}, *directory));
  EXPECT_TRUE(read_inventory(*directory));
  auto newer = make_inventory({});
  newer.set_img_version(3);
  ASSERT_TRUE(directory->commit(newer));
  EXPECT_THAT(read_inventory(*directory).error().message(), AllOf(HasSubstr("img_version"), HasSubstr("version 3")));
}

TEST_F(PstreeTest, OnlyThePidNamespaceMayBeTheTreesOwn) {
  model::Application application;
  const auto inventory = make_inventory(application);
  task_kobj_ids_entry ids;
  set_namespaces(application, {}, ids);
  EXPECT_FALSE(owns_pid_namespace(inventory, ids, "ids-1.img").value());
  application.root_is_namespace_init = true;
  set_namespaces(application, {}, ids);
  EXPECT_TRUE(owns_pid_namespace(inventory, ids, "ids-1.img").value());
  ids.set_net_ns_id(99);
  EXPECT_THAT(owns_pid_namespace(inventory, ids, "ids-1.img").error().message(),
              AllOf(HasSubstr("ids-1.img, field net_ns_id"), HasSubstr("net namespace of its own")));
}

}  // namespace
}  // namespace stasis::resource
