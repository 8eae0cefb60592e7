// Working directory, root directory and umask.
#include <sys/stat.h>

#include "kernel/process.h"
#include "file_cycle.h"
#include "resource/fs_context.h"

namespace stasis::resource {
namespace {

class FsContexts : public FileCycle {
 protected:
  /// Captures, reads images, makes it in a new process, captures again.
  void cycle_of(const std::function<void()>& body, const std::function<void(pid_t)>& check) {
    Holder first(body);
    ASSERT_TRUE(first.succeeded());
    const auto before = capture(first.pid());
    EXPECT_THAT(refusals(*before), testing::IsEmpty());
    auto decoded = through_images(before->application);
    ASSERT_TRUE(decoded) << decoded.error().message();
    first.end();
    decode_context(before->application, *decoded);

    plan::Program program;
    const auto& task = decoded->tasks.front();
    plan::Sink supervisor(program, Pid{0}, Tid{0}), own(program, task.pid, leader_of(task.pid));
    for (const auto* room : file_rooms()) room->contribute(plan::Stage::prepare, *decoded, supervisor);
    for (const auto stage : {plan::Stage::thread, plan::Stage::final}) {
      fs_context_room().contribute(stage, *decoded, task, task.threads.front(), own);
    }
    const auto run = [&](pid_t pid) {
      DirectRunner runner(getpid());
      for (const auto& command : program.commands) {
        if (command.pid.value == pid) require(runner.run(command.action));
      }
    };
    run(0);
    Holder second([&] { run(tree_pid); });
    ASSERT_TRUE(second.succeeded());
    program.commands.clear();
    for (const auto* room : file_rooms()) room->contribute(plan::Stage::settle, *decoded, supervisor);
    run(0);
    const auto after = capture(second.pid());
    const auto& was = before->application.fs_contexts.at(fs_id);
    const auto& is = after->application.fs_contexts.at(fs_id);
    EXPECT_EQ(was.umask, is.umask);
    const auto state = [](const CaptureContext& context, ObjectId id) {
      return context.application.descriptions.at(id).state;
    };
    EXPECT_TRUE(state(*before, was.working_directory) == state(*after, is.working_directory));
    EXPECT_TRUE(state(*before, was.root_directory) == state(*after, is.root_directory));
    check(second.pid());
  }

  static void decode_context(const model::Application& from, model::Application& to) {
    image::TaskRecords records;
    const auto& task = from.tasks.front();
    ASSERT_TRUE(fs_context_room().encode(from, task, records));
    to.fs_contexts.clear();
    const Status decoded = fs_context_room().decode(records, to, to.tasks.front());
    ASSERT_TRUE(decoded) << decoded.error().message();
    EXPECT_EQ(to.fs_contexts.at(task.fs), from.fs_contexts.at(task.fs));
  }
};

TEST_F(FsContexts, WorkingDirectoryAndUmask) {
  cycle_of(
      [&] {
        REQUIRE(chdir(work("").c_str()) == 0);
        umask(0123);
      },
      [&](pid_t pid) { EXPECT_EQ(*kernel::read_link(fmt::format("/proc/{}/cwd", pid)) + "/", work("")); });
}

TEST_F(FsContexts, RootDirectoryWithTheWorkingDirectoryInsideOrOutside) {
  for (const char* where : {"root/inside", "outside"}) {
    fs::create_directories(work("root/inside"));
    fs::create_directories(work("outside"));
    cycle_of([&] { REQUIRE(chdir(work(where).c_str()) == 0 && chroot(work("root").c_str()) == 0); },
             [&](pid_t pid) {
               EXPECT_EQ(*kernel::read_link(fmt::format("/proc/{}/cwd", pid)), work(where));
               EXPECT_EQ(*kernel::read_link(fmt::format("/proc/{}/root", pid)), work("root"));
             });
  }
}

TEST_F(FsContexts, UnlinkedWorkingDirectory) {
  cycle_of(
      [&] {
        REQUIRE(mkdir(work("gone").c_str(), 0710) == 0 && chdir(work("gone").c_str()) == 0);
        REQUIRE(rmdir(work("gone").c_str()) == 0);
      },
      [&](pid_t pid) {
        EXPECT_EQ(*kernel::read_link(fmt::format("/proc/{}/cwd", pid)), work("gone") + " (deleted)");
        EXPECT_EQ(files_in_work(), 0u);
      });
}

TEST_F(FsContexts, HostileRecordsAreRejected) {
  Holder holder([] {});
  const auto captured = capture(holder.pid());
  const auto with = [&](const std::function<void(fs_entry&)>& change) {
    image::TaskRecords records;
    auto application = captured->application;
    EXPECT_TRUE(fs_context_room().encode(application, application.tasks.front(), records));
    change(records.fs);
    application.fs_contexts.clear();
    return fs_context_room().decode(records, application, application.tasks.front()).has_value();
  };
  EXPECT_TRUE(with([](auto&) {}));
  EXPECT_FALSE(with([](auto& fs) { fs.set_umask(01000); }));
  EXPECT_FALSE(with([](auto& fs) { fs.set_cwd_id(4'000'000); }));
  EXPECT_FALSE(with([](auto& fs) { fs.set_root_id(0); }));
}

}  // namespace
}  // namespace stasis::resource
