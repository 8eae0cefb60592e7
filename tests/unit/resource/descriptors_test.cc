// Tables and shared descriptions across several processes; what no room can save.
#include <linux/userfaultfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <chrono>

#include "kernel/process.h"
#include "file_cycle.h"

namespace stasis::resource {
namespace {

using testing::Contains;
using testing::HasSubstr;

class Descriptors : public FileCycle {
 protected:
  /// Captures processes that hang together as given: each with a table of its own.
  std::unique_ptr<CaptureContext> capture_all(const std::vector<pid_t>& pids) {
    auto context = std::make_unique<CaptureContext>();
    std::vector<ProcessView> views(pids.size());
    for (size_t i = 0; i < pids.size(); ++i) {
      model::Task task;
      task.pid = Pid{static_cast<pid_t>(100 + i)}, task.name = "holder";
      task.descriptors = context->new_id(), task.fs = context->new_id();
      context->application.tasks.push_back(task);
      context->host_to_tree[pids[i]] = task.pid.value;
      views[i].host_pid = pids[i], views[i].host_tids = {pids[i]};
    }
    std::vector<DescriptorHolder> holders;
    for (size_t i = 0; i < pids.size(); ++i) holders.push_back({&views[i], &context->application.tasks[i]});
    const Status done = capture_descriptors(*context, holders);
    EXPECT_TRUE(done) << done.error().message();
    return context;
  }
  static ObjectId description(const CaptureContext& context, size_t task, int fd) {
    return context.application.descriptor_tables.at(context.application.tasks[task].descriptors)
        .slots.at(fd)
        .description;
  }
};

TEST_F(Descriptors, DescriptionsAreSharedAcrossProcesses) {
  const auto path = work("file");
  int to_parent[2];
  ASSERT_EQ(pipe2(to_parent, O_CLOEXEC), 0);
  pid_t child = 0;
  Holder parent([&] {
    REQUIRE(open(path.c_str(), O_CREAT | O_RDWR, 0600) == 3);  // shared by fork
    REQUIRE(open(path.c_str(), O_RDWR) == 4);                  // the same file, opened again
    int report[2];
    REQUIRE(pipe(report) == 0);
    const pid_t forked = fork();
    if (forked == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      close(report_fd);
      REQUIRE(close(4) == 0 && open(path.c_str(), O_RDWR) == 4);  // its own
      REQUIRE(dup2(3, 30) == 30);
      REQUIRE(write(report[1], "x", 1) == 1);
      while (true) pause();
    }
    char byte;
    REQUIRE(read(report[0], &byte, 1) == 1);
    REQUIRE(close(report[0]) == 0 && close(report[1]) == 0);
    REQUIRE(lseek(4, forked, SEEK_SET) == forked);  // says the pid
  });
  ASSERT_TRUE(parent.succeeded());
  child = static_cast<pid_t>(kernel::read_fdinfo(parent.pid(), 4)->position);
  const auto captured = capture_all({parent.pid(), child});
  EXPECT_EQ(description(*captured, 0, 3), description(*captured, 1, 3));
  EXPECT_EQ(description(*captured, 0, 3), description(*captured, 1, 30));
  EXPECT_NE(description(*captured, 0, 3), description(*captured, 0, 4));
  EXPECT_NE(description(*captured, 0, 4), description(*captured, 1, 4));
  kill(child, SIGKILL);
  close(to_parent[0]), close(to_parent[1]);
}

TEST_F(Descriptors, WhatCannotBeSavedIsNamedAllAtOnce) {
  Holder holder([] {
    REQUIRE(socket(AF_VSOCK, SOCK_STREAM, 0) == 3);
    REQUIRE(syscall(SYS_userfaultfd, UFFD_USER_MODE_ONLY) == 4);
  });
  const auto texts = refusals(*capture(holder.pid()));
  EXPECT_THAT(texts, Contains(HasSubstr("descriptor 3 → socket:")));
  EXPECT_THAT(texts, Contains(HasSubstr("descriptor 4 → anon_inode:[userfaultfd]")));
}

TEST_F(Descriptors, FilesBehindLinksOfProcfsAreCapturedOnce) {
  Holder holder([] {});
  CaptureContext context;
  const auto path = fmt::format("/proc/{}/exe", holder.pid());
  const auto link = read_file_link(path);
  ASSERT_TRUE(link);
  const auto first = capture_file_at(context, {holder.pid(), path, O_RDONLY, "executable"}, *link);
  const auto second = capture_file_at(context, {holder.pid(), path, O_RDONLY, "executable"}, *link);
  ASSERT_TRUE(first && second);
  EXPECT_EQ(*first, *second);
  EXPECT_EQ(context.application.descriptions.size(), 1u);
  const auto writable = capture_file_at(context, {holder.pid(), path, O_RDWR, "mapping"}, *link);
  ASSERT_TRUE(writable);
  EXPECT_NE(*first, *writable);
}

}  // namespace
}  // namespace stasis::resource
