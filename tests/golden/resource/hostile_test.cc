// One thing is wrong in an otherwise good checkpoint: the error says which file and which field.
#include <gmock/gmock.h>

#include "core.pb.h"
#include "criu_images.h"
#include "fdinfo.pb.h"
#include "fs.pb.h"
#include "ids.pb.h"
#include "inventory.pb.h"
#include "mm.pb.h"
#include "pagemap.pb.h"
#include "pstree.pb.h"
#include "resource/codec.h"

namespace stasis::resource {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class Hostile : public CriuImages {
 protected:
  template <typename Record>
  using Change = std::function<void(std::vector<Record>&)>;

  /// Changes the records of a file, decodes, puts the file back.
  template <typename Record>
  std::string error_after(const std::string& file, const Change<Record>& change) {
    const std::string before = bytes("theirs/" + file);
    std::vector<Record> records;
    auto reader = theirs->read(file);
    EXPECT_TRUE(reader);
    for (Record record; *reader->next(record);) records.push_back(record);
    change(records);
    auto writer = theirs->create(file);
    EXPECT_TRUE(writer);
    for (const Record& record : records) EXPECT_TRUE(writer->append(record));
    EXPECT_TRUE(writer->finish());
    auto error = decoded();
    std::ofstream(root_ / "theirs" / file, std::ios::binary) << before;
    return error;
  }

  template <typename Record>
  std::string error_of_first(const std::string& file, const std::function<void(Record&)>& change) {
    return error_after<Record>(file, [&](std::vector<Record>& records) { change(records.front()); });
  }

  std::string decoded() {
    const auto application = decode(*theirs);
    return application ? "none" : application.error().message();
  }

  std::string error_without(const std::string& file) {
    std::filesystem::rename(root_ / "theirs" / file, root_ / "aside");
    auto error = decoded();
    std::filesystem::rename(root_ / "aside", root_ / "theirs" / file);
    return error;
  }

  const std::string core = "core-31904.img", ids = "ids-31904.img", mm = "mm-31904.img";
};

TEST_F(Hostile, TheCheckpointItselfIsGood) { EXPECT_EQ(decoded(), "none"); }

TEST_F(Hostile, MissingFilesAreNamed) {
  for (const char* file : {"inventory.img", "pstree.img", "core-31907.img", "ids-31907.img", "mm-31907.img",
                           "fs-31907.img", "pages-2.img", "ghost-file-1.img"})
    EXPECT_THAT(error_without(file), HasSubstr(file)) << file;
  EXPECT_THAT(error_without("files.img"), HasSubstr("files.img"));
}

TEST_F(Hostile, ProcessesOfAnotherKind) {
  EXPECT_THAT(error_of_first<core_entry>(core, [](auto& r) { r.set_mtype(core_entry::AARCH64); }),
              AllOf(HasSubstr(core + ", field mtype"), HasSubstr("AARCH64")));
  EXPECT_THAT(error_of_first<core_entry>(core, [](auto& r) { r.mutable_tc()->set_task_state(99); }),
              AllOf(HasSubstr(core + ", field tc.task_state"), HasSubstr("99")));
  EXPECT_THAT(error_of_first<core_entry>(core, [](auto& r) { r.mutable_tc()->set_task_state(2); }),
              AllOf(HasSubstr(core + ", field tc.task_state"), HasSubstr("the root is a zombie")));
  EXPECT_THAT(error_of_first<core_entry>(core, [](auto& r) { r.clear_tc(); }), HasSubstr(core + ", field tc"));
  EXPECT_THAT(error_of_first<core_entry>(core, [](auto& r) { r.clear_thread_core(); }),
              HasSubstr(core + ", field thread_core"));
  EXPECT_THAT(error_of_first<core_entry>(core, [](auto& r) { r.clear_thread_info(); }),
              HasSubstr(core + ", field thread_info"));
  EXPECT_THAT(error_of_first<core_entry>("core-31907.img",
                                         [](auto& r) {
                                           r.mutable_tc()->set_task_state(2);
                                           r.mutable_tc()->set_exit_code(0x10000);
                                         }),
              HasSubstr("core-31907.img, field tc.exit_code"));
  EXPECT_THAT(error_of_first<core_entry>(core,
                                         [](auto& r) {
                                           r.mutable_tc()->set_task_state(3);
                                           r.mutable_tc()->set_stop_signo(9);
                                         }),
              HasSubstr(core + ", field tc.stop_signo"));
}

TEST_F(Hostile, CallsThatAreNotInterrupted) {
  const auto error_of_call = [&](uint64_t in_registers, uint32_t number, uint64_t remaining) {
    return error_of_first<core_entry>(core, [&](auto& r) {
      r.mutable_thread_info()->mutable_gpregs()->set_ax(in_registers);
      auto& call = *r.mutable_thread_core()->mutable_interrupted_call();
      call.set_number(number), call.set_remaining_ns(remaining);
    });
  };
  constexpr uint32_t poll = 7, nanosleep = 35, pause = 34;
  const std::string field = core + ", field thread_core.interrupted_call.";
  EXPECT_EQ(error_of_call(poll, poll, 5), "none");
  EXPECT_THAT(error_of_call(pause, pause, 5), AllOf(HasSubstr(field + "number"), HasSubstr("34")));
  EXPECT_THAT(error_of_call(nanosleep, poll, 5),
              AllOf(HasSubstr(field + "number"), HasSubstr("before system call 35")));
  EXPECT_THAT(error_of_call(poll, poll, uint64_t{1} << 63), HasSubstr(field + "remaining_ns"));
}

TEST_F(Hostile, LeadersThatHaveEnded) {
  const auto error_of_status = [&](const std::string& file, uint32_t status, uint32_t state = 1) {
    return error_of_first<core_entry>(file, [&](auto& r) {
      r.clear_thread_info();
      r.mutable_tc()->set_leader_exit_status(status);
      r.mutable_tc()->set_task_state(state);
    });
  };
  EXPECT_THAT(error_of_first<core_entry>(core, [](auto& r) { r.mutable_tc()->set_leader_exit_status(0); }),
              AllOf(HasSubstr(core + ", field thread_info"), HasSubstr("has no registers")));
  EXPECT_THAT(error_of_status(core, 0),
              AllOf(HasSubstr(core + ", field tc.leader_exit_status"), HasSubstr("no other")));
  EXPECT_THAT(error_of_status("core-31907.img", 0, 2),
              AllOf(HasSubstr("core-31907.img, field tc.leader_exit_status"), HasSubstr("a zombie")));
  const std::string before = bytes("theirs/" + core);
  std::ofstream(root_ / "theirs/core-40000.img", std::ios::binary) << before;
  const auto error_beside_another = [&](uint32_t status) {
    auto error = error_after<pstree_entry>("pstree.img", [&](auto& tasks) {
      tasks[0].add_threads(40000);
      core_entry record;
      ASSERT_TRUE(theirs->read(core)->single(record));
      record.clear_thread_info();
      record.mutable_tc()->set_leader_exit_status(status);
      auto writer = theirs->create(core);
      ASSERT_TRUE(writer->append(record));
      ASSERT_TRUE(writer->finish());
    });
    std::ofstream(root_ / "theirs" / core, std::ios::binary) << before;
    return error;
  };
  EXPECT_THAT(error_beside_another(9), HasSubstr("0x9 is no status of exit"));
  EXPECT_THAT(error_beside_another(0x10000), HasSubstr("0x10000 is no status of exit"));
  EXPECT_EQ(error_beside_another(0x700), "none");
}

TEST_F(Hostile, AZombieHasNoChildren) {
  const std::string before = bytes("theirs/core-31907.img");
  std::ofstream(root_ / "theirs/core-31907.img", std::ios::binary) << before;
  EXPECT_THAT(error_after<pstree_entry>("pstree.img",
                                        [&](auto& tasks) {
                                          tasks[2].set_ppid(tasks[1].pid());
                                          core_entry record;
                                          auto reader = theirs->read("core-31907.img");
                                          ASSERT_TRUE(reader->single(record));
                                          record.mutable_tc()->set_task_state(2);
                                          auto writer = theirs->create("core-31907.img");
                                          ASSERT_TRUE(writer->append(record));
                                          ASSERT_TRUE(writer->finish());
                                        }),
              AllOf(HasSubstr("pstree.img, field ppid"), HasSubstr("child of the zombie 31907")));
}

/// Nested pid namespaces have to fit together: who lives where, with how many ids.
TEST_F(Hostile, NestedPidNamespaces) {
  const auto error_of_last = [&](const std::function<void(pstree_entry&)>& change) {
    return error_after<pstree_entry>("pstree.img", [&](auto& tasks) { change(tasks.back()); });
  };
  EXPECT_THAT(error_of_last([](auto& r) { r.add_nested_pids(0); }),
              AllOf(HasSubstr("pstree.img"), HasSubstr("field nested_pids"), HasSubstr("0 cannot be a pid")));
  EXPECT_THAT(error_of_last([](auto& r) { r.add_nested_pids(1); }),
              AllOf(HasSubstr("pstree.img, field nested_pids"), HasSubstr("0 levels deep")));
  EXPECT_THAT(error_of_last([](auto& r) { r.set_pid_namespace(4711); }), HasSubstr("the init of none"));
  EXPECT_THAT(error_of_last([](auto& r) {
                r.add_nested_pids(1);
                r.set_pid_namespace(r.pid());
              }),
              HasSubstr("0 nested ids instead of 1"));  // its threads have none
  EXPECT_THAT(error_of_last([](auto& r) { r.set_childrens_namespace(r.pid()); }),
              HasSubstr("which is none below its own"));
  EXPECT_THAT(error_of_last([](auto& r) {
                auto& leader = *r.add_dead_leaders();
                leader.set_pid(4711);
                leader.set_pid_namespace(0xffffffff);
              }),
              HasSubstr("field dead_leaders.pid_namespace"));
  EXPECT_THAT(error_of_last([](auto& r) {
                auto& leader = *r.add_dead_leaders();
                leader.set_pid(4711);
                leader.add_nested_pids(2);
                leader.set_pid_namespace(r.pid());
              }),
              HasSubstr("the dead leader 4711"));
  EXPECT_THAT(error_of_first<core_entry>(core, [](auto& r) { r.mutable_thread_core()->add_nested_tids(0x7fffffff); }),
              HasSubstr(core + ", field thread_core.nested_tids"));
}

TEST_F(Hostile, ObjectsThatAreNotThere) {
  EXPECT_THAT(error_of_first<task_kobj_ids_entry>(ids, [](auto& r) { r.set_vm_id(0); }),
              HasSubstr(ids + ", field vm_id"));
  EXPECT_THAT(error_of_first<task_kobj_ids_entry>(ids, [](auto& r) { r.set_sighand_id(0); }),
              HasSubstr(ids + ", field sighand_id"));
  EXPECT_THAT(error_of_first<fs_entry>("fs-31904.img", [](auto& r) { r.set_cwd_id(4711); }),
              AllOf(HasSubstr("fs-31904.img, field cwd_id"), HasSubstr("4711 is not in files.img")));
  EXPECT_THAT(error_of_first<fdinfo_entry>("fdinfo-2.img", [](auto& r) { r.set_id(4711); }),
              AllOf(HasSubstr("fdinfo-2.img, record 0"), HasSubstr("field id"), HasSubstr("4711 is not in files.img")));
  EXPECT_THAT(error_of_first<mm_entry>(mm, [](auto& r) { r.set_exe_file_id(4711); }),
              HasSubstr(mm + ", field exe_file_id"));
}

TEST_F(Hostile, NumbersThatAreTaken) {
  EXPECT_THAT(error_after<fdinfo_entry>("fdinfo-2.img", [](auto& slots) { slots[1].set_fd(slots[0].fd()); }),
              AllOf(HasSubstr("fdinfo-2.img, record 1"), HasSubstr("field fd"), HasSubstr("occurs twice")));
  EXPECT_THAT(error_of_first<fdinfo_entry>("fdinfo-2.img", [](auto& r) { r.set_fd(0x80000000); }),
              HasSubstr("is no descriptor"));
  EXPECT_THAT(error_after<file_entry>("files.img", [](auto& files) { files.push_back(files[0]); }),
              AllOf(HasSubstr("files.img"), HasSubstr("field id"), HasSubstr("twice")));
}

TEST_F(Hostile, NamespacesOfItsOwn) {
  EXPECT_THAT(error_of_first<task_kobj_ids_entry>(ids, [](auto& r) { r.set_net_ns_id(99); }),
              HasSubstr(ids + ", field net_ns_id"));
  EXPECT_THAT(error_of_first<task_kobj_ids_entry>(ids, [](auto& r) { r.set_pid_ns_id(99); }),
              AllOf(HasSubstr(ids + ", field pid_ns_id"), HasSubstr("not pid 1")));
  EXPECT_THAT(error_of_first<task_kobj_ids_entry>("ids-31907.img", [](auto& r) { r.set_pid_ns_id(99); }),
              HasSubstr("ids-31907.img, field pid_ns_id"));
  EXPECT_THAT(error_of_first<inventory_entry>("inventory.img", [](auto& r) { r.set_img_version(1); }),
              HasSubstr("img_version"));
}

TEST_F(Hostile, PagesWhereNothingIs) {
  const std::string pagemap = "pagemap-31904.img";
  const std::string before = bytes("theirs/" + pagemap);
  auto reader = theirs->read(pagemap);
  pagemap_head head;
  pagemap_entry entry;
  ASSERT_TRUE(*reader->next(head));
  ASSERT_TRUE(*reader->next(entry));
  entry.set_vaddr(0x1000);
  auto writer = theirs->create(pagemap);
  ASSERT_TRUE(writer->append(head));
  ASSERT_TRUE(writer->append(entry));
  ASSERT_TRUE(writer->finish());
  EXPECT_THAT(decoded(), AllOf(HasSubstr(pagemap + ", field vaddr"), HasSubstr("0x1000, where nothing is mapped")));
}

TEST_F(Hostile, EveryTruncationIsAnError) {
  const auto files = *theirs->list();
  for (const std::string& file : files) {
    if (file.starts_with("pages-")) continue;
    const std::string whole = bytes("theirs/" + file);
    for (size_t size = 0; size < whole.size(); size += 1 + size / 16) {
      std::ofstream(root_ / "theirs" / file, std::ios::binary) << whole.substr(0, size);
      const auto application = decode(*theirs);
      // What ends between two records cannot be told from a shorter file; everything else must be noticed.
      if (!application) {
        EXPECT_FALSE(application.error().message().empty());
      }
    }
    std::ofstream(root_ / "theirs" / file, std::ios::binary) << whole;
  }
  EXPECT_EQ(decoded(), "none");
}

}  // namespace
}  // namespace stasis::resource
