// A child with open files is captured, its files go through images and back, and another child makes them again: what
// that one has must be what the first had.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>

#include "direct_runner.h"
#include "image/file_records.h"
#include "plan/descriptors.h"
#include "resource/descriptors.h"
#include "resource/registry.h"

namespace stasis::resource {

namespace fs = std::filesystem;

/// The child's way to say how it went.
constexpr int report_fd = 999;

inline void require(const Status& status) {
  if (status) return;
  const auto text = status.error().message();
  if (write(report_fd, text.data(), text.size()) < 0) _exit(8);
  _exit(9);
}
inline void require(bool condition, const char* what) {
  if (!condition) require(Status(std::unexpected(Error::system(what, errno))));
}
#define REQUIRE(condition) ::stasis::resource::require((condition), #condition)

/// A process that has set something up and waits. Its streams are /dev/null.
class Holder {
 public:
  explicit Holder(const std::function<void()>& body) {
    int ready[2];
    if (pipe2(ready, O_CLOEXEC) != 0) throw std::runtime_error("pipe");
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      // What the test itself has open is none of the child's.
      if (dup2(ready[1], report_fd) < 0) _exit(7);
      syscall(SYS_close_range, 3, report_fd - 1, 0);
      const int null = open("/dev/null", O_RDWR);
      for (const int fd : {0, 1, 2}) dup2(null, fd);
      close(null);
      body();
      if (write(report_fd, "ready", 5) != 5) _exit(1);
      close(report_fd);
      while (true) pause();
    }
    close(ready[1]);
    char text[1024];
    std::string said;
    for (ssize_t count; (count = read(ready[0], text, sizeof text)) > 0;) said.append(text, static_cast<size_t>(count));
    close(ready[0]);
    succeeded_ = said == "ready";
    EXPECT_TRUE(succeeded_) << "the child said: " << said;
  }
  Holder(const Holder&) = delete;
  ~Holder() { end(); }
  void end() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  pid_t pid() const { return pid_; }
  bool succeeded() const { return succeeded_; }

 private:
  pid_t pid_ = 0;
  bool succeeded_ = false;
};

class FileCycle : public testing::Test {
 protected:
  static constexpr pid_t tree_pid = 4242;  ///< in the model, whatever the host says
  static constexpr ObjectId table{100001}, fs_id{100002};

  FileCycle() {
    std::string pattern = (fs::temp_directory_path() / "stasis-files-XXXXXX").string();
    directory_ = mkdtemp(pattern.data());
    fs::create_directory(directory_ / "images");
    fs::create_directory(directory_ / "work");
  }
  ~FileCycle() override { fs::remove_all(directory_); }

  std::string work(const std::string& name) const { return (directory_ / "work" / name).string(); }
  size_t files_in_work() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(directory_ / "work"), fs::directory_iterator()));
  }

  /// Captures one process that stands for a whole tree.
  std::unique_ptr<CaptureContext> capture(pid_t host_pid) {
    auto context = std::make_unique<CaptureContext>();
    context->policy = policy;
    context->host_to_tree[host_pid] = tree_pid;
    model::Task task;
    task.pid = Pid{tree_pid}, task.name = "holder", task.descriptors = table, task.fs = fs_id;
    context->application.root = task.pid;
    context->application.shell_job = policy.shell_job;
    model::Thread thread;
    thread.tid = leader_of(task.pid);
    task.threads.push_back(thread);
    context->application.tasks.push_back(task);
    ProcessView view;
    view.host_pid = host_pid, view.host_tids = {host_pid};
    const DescriptorHolder holder{&view, &context->application.tasks.back()};
    const Status done = capture_descriptors(*context, {&holder, 1});
    EXPECT_TRUE(done) << done.error().message();
    return context;
  }

  /// Images and back. The table, which the codec writes, is taken over.
  Result<model::Application> through_images(const model::Application& application) {
    const auto images = TRY(image::Directory::open((directory_ / "images").string()));
    image::FileRecords out(images);
    for (const auto& [id, description] : application.descriptions) {
      TRY(file_room(description.state.value->kind())->encode(application, description, out));
    }
    TRY(out.finish());
    image::FileRecords in(images);
    TRY(in.load());
    std::set<uint32_t> parts;
    each_room(in, [&](const FileRoom& room, const image::FileRecord& record) {
      for (const uint32_t id : room.parts(in, record)) parts.insert(id);
    });
    model::Application decoded;
    decoded.root = application.root, decoded.tasks = application.tasks, decoded.shell_job = application.shell_job;
    decoded.descriptor_tables = application.descriptor_tables, decoded.fs_contexts = application.fs_contexts;
    std::optional<Error> problem;
    each_room(in, [&](const FileRoom& room, const image::FileRecord& record) {
      if (parts.contains(record.id())) return;
      auto description = room.decode(in, record, decoded);
      if (description)
        decoded.descriptions.emplace(description->id, std::move(*description));
      else
        problem = description.error();
    });
    if (problem) return fail(std::move(*problem));
    for (const auto* room : file_rooms()) TRY(room->finish_decode(decoded));
    return decoded;
  }

  static void each_room(const image::FileRecords& records,
                        const std::function<void(const FileRoom&, const image::FileRecord&)>& visit) {
    for (const auto* record : records.loaded()) {
      for (const auto* room : file_rooms()) {
        if (!room->decodes(records, *record)) continue;
        visit(*room, *record);
        break;
      }
    }
  }

  static std::vector<Diagnostic> validated(const model::Application& application) {
    Diagnostics diagnostics;
    for (const auto* room : file_rooms()) room->validate_all(application, diagnostics);
    return diagnostics.all();
  }

  /// The commands of the restore: what the supervisor does before, what the process does, what the supervisor does
  /// after.
  struct Parts {
    std::vector<plan::Action> prepare, process, settle;
    int images_fd = -1;
  };
  Parts planned(const model::Application& application) {
    const auto all = contributors();
    const plan::PlanOptions options;
    plan::Emission out(application, all, options);
    out.program.images_fd = 700;
    out.set_first_temporary(701);
    out.open_terminals(600);
    auto supervisor = out.process(Pid{0});
    for (const auto* maker : all.makers) maker->contribute(plan::Stage::prepare, application, supervisor);
    plan::DescriptorPlan descriptors(out, {});
    const Status made = descriptors.make(Pid{tree_pid});
    EXPECT_TRUE(made) << made.error().message();
    const Status taken = descriptors.take(Pid{tree_pid});
    EXPECT_TRUE(taken) << taken.error().message();
    const Status completed = descriptors.complete(Pid{tree_pid});
    EXPECT_TRUE(completed) << completed.error().message();
    descriptors.close_temporaries(Pid{tree_pid});
    out.close_terminals(Pid{tree_pid});
    const size_t own = out.program.commands.size();
    for (const auto* maker : all.makers) maker->contribute(plan::Stage::settle, application, supervisor);
    Parts parts;
    parts.images_fd = out.program.images_fd;
    for (size_t i = 0; i < out.program.commands.size(); ++i) {
      auto& command = out.program.commands[i];
      auto& list = command.pid.value != 0 ? parts.process : i < own ? parts.prepare : parts.settle;
      list.push_back(std::move(command.action));
    }
    return parts;
  }

  /// Makes the files in a new process; what the supervisor does is done here.
  std::unique_ptr<Holder> restored(const model::Application& application) {
    const auto parts = planned(application);
    const UniqueFd images(open((directory_ / "images").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    EXPECT_GE(dup2(images.get(), parts.images_fd), 0);
    const auto all = [](DirectRunner& runner, const std::vector<plan::Action>& actions) -> Status {
      for (const auto& action : actions) TRY_IN(std::string(plan::name_of(action)), runner.run(action));
      return {};
    };
    DirectRunner here(getpid());
    const Status prepared = all(here, parts.prepare);
    EXPECT_TRUE(prepared) << prepared.error().message();
    const pid_t supervisor = getpid();
    auto holder = std::make_unique<Holder>([&] {
      require(dup2(dup_of_images(supervisor, parts.images_fd), parts.images_fd) >= 0, "images");
      syscall(SYS_close_range, 0, 2, 0);
      DirectRunner runner(supervisor);
      require(all(runner, parts.process));
      close(parts.images_fd);
    });
    EXPECT_TRUE(holder->succeeded());
    const Status settled = all(here, parts.settle);
    EXPECT_TRUE(settled) << settled.error().message();
    close(parts.images_fd);
    return holder;
  }

  /// The whole cycle. `check` looks at the second process from outside, through its /proc/PID/fd.
  void cycle(const std::function<void()>& body, const std::function<void(pid_t)>& check = [](pid_t) {}) {
    Holder first(body);
    ASSERT_TRUE(first.succeeded());
    const auto before = capture(first.pid());
    EXPECT_FALSE(before->diagnostics.refused()) << testing::PrintToString(refusals(*before));
    const auto decoded = through_images(before->application);
    ASSERT_TRUE(decoded) << decoded.error().message();
    expect_equal(before->application, *decoded, "after reading the images");
    first.end();
    EXPECT_THAT(validated(*decoded), testing::IsEmpty());
    const auto second = restored(*decoded);
    ASSERT_TRUE(second->succeeded());
    const auto after = capture(second->pid());
    expect_equal(before->application, after->application, "after the restore");
    check(second->pid());
  }

  static void expect_equal(const model::Application& a, const model::Application& b, const std::string& when) {
    EXPECT_EQ(a.descriptor_tables, b.descriptor_tables) << when;
    for (const auto& [id, description] : a.descriptions) {
      const auto other = b.descriptions.find(id);
      ASSERT_NE(other, b.descriptions.end()) << when << ": there is no description " << id.value;
      SCOPED_TRACE(when + ": " + description.state.value->describe() + " / " + other->second.state.value->describe());
      EXPECT_EQ(description.flags, other->second.flags);
      EXPECT_EQ(description.position, other->second.position);
      EXPECT_EQ(static_cast<int>(description.owner.kind), static_cast<int>(other->second.owner.kind));
      EXPECT_EQ(description.owner.id, other->second.owner.id);
      EXPECT_EQ(description.owner.signal, other->second.owner.signal);
      EXPECT_TRUE(description.state == other->second.state);
    }
    EXPECT_EQ(a.descriptions.size(), b.descriptions.size()) << when;
    EXPECT_EQ(a.objects.size(), b.objects.size()) << when;
    for (const auto& [id, object] : a.objects) {
      if (!b.objects.contains(id)) continue;
      EXPECT_TRUE(object == b.objects.at(id))
          << when << ": " << object.value->describe() << " / " << b.objects.at(id).value->describe();
    }
  }

  static std::vector<std::string> refusals(const CaptureContext& context) {
    std::vector<std::string> texts;
    for (const auto& diagnostic : context.diagnostics.all()) texts.push_back(diagnostic.text());
    return texts;
  }

  CapturePolicy policy;
  fs::path directory_;

 private:
  static int dup_of_images(pid_t supervisor, int fd) {
    return open(fmt::format("/proc/{}/fd/{}", supervisor, fd).c_str(), O_RDONLY | O_DIRECTORY);
  }
};

inline std::string fd_path(pid_t pid, int fd) { return fmt::format("/proc/{}/fd/{}", pid, fd); }

}  // namespace stasis::resource
