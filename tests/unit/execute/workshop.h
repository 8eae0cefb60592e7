// Programs written by hand and really run: a fixture with free pids, a page of code for restored tasks to run, and the
// proof that nothing is left.
#pragma once

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "execute/execute.h"
#include "kernel/id_holder.h"
#include "kernel/proc.h"
#include "kernel/process.h"
#include "../eventually.h"

// What restored tasks run. Position-independent; rbx = the page of data.
extern "C" {
extern const uint8_t workshop_code_begin[], workshop_code_end[];
extern const uint8_t code_exit_42[], code_pause[], code_reap[], code_threads_leader[], code_threads_other[],
    code_exit_sum[];
}

namespace stasis::execute {

constexpr uint64_t code_page = 0x10000000, data_page = 0x10010000, stack_page = 0x10020000;

inline uint64_t address_of(const uint8_t* code) {
  return code_page + static_cast<uint64_t>(code - workshop_code_begin);
}

class Workshop : public testing::Test {
 protected:
  Workshop() {
    std::string pattern = (std::filesystem::temp_directory_path() / "stasis-execute-XXXXXX").string();
    directory_ = mkdtemp(pattern.data());
    auto opened = image::Directory::open(directory_.string());
    if (!opened) throw std::runtime_error(opened.error().message());
    images = std::make_unique<image::Directory>(std::move(*opened));
    std::ofstream(file("code"), std::ios::binary)
        .write(reinterpret_cast<const char*>(workshop_code_begin), workshop_code_end - workshop_code_begin);
    std::filesystem::resize_file(file("code"), page_size);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    program.agent_area = free_range(4 << 20);
    program.images_fd = 300;
  }
  ~Workshop() override {
    tree.reset();
    for (const pid_t pid : created_) kill(pid, SIGKILL);
    while (waitpid(-1, nullptr, __WALL) > 0) {
    }
    std::filesystem::remove_all(directory_);
  }
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "choosing pids needs root";
  }

  std::string file(std::string_view name) const { return (directory_ / name).string(); }

  static AddressRange free_range(uint64_t size) {
    void* found = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    munmap(found, size);
    return {reinterpret_cast<uint64_t>(found), reinterpret_cast<uint64_t>(found) + size};
  }

  /// Numbers that nobody has and nobody is about to get, at a place of its own for every run.
  std::vector<Pid> free_pids(size_t count) {
    const pid_t first = kernel::quiet_ids(static_cast<pid_t>(count), std::random_device{}());
    if (first == 0) throw std::runtime_error("no pids are free");
    std::vector<Pid> pids;
    for (pid_t pid = first; pids.size() < count; ++pid) {
      pids.push_back(Pid{pid});
      created_.push_back(pid);
    }
    return pids;
  }

  // ---- the program

  void supervisor(plan::Action action) { program.commands.push_back({Pid{0}, Tid{0}, std::move(action)}); }
  void does(Pid pid, plan::Action action) { program.commands.push_back({pid, leader_of(pid), std::move(action)}); }
  void does(Pid pid, Tid tid, plan::Action action) { program.commands.push_back({pid, tid, std::move(action)}); }
  static plan::Fork fork_of(Pid child) {
    plan::Fork fork;
    fork.child_pid = child;
    return fork;
  }
  static plan::Perform perform(plan::Calls calls, std::string attribute = {}) {
    return {"test", std::move(attribute), {}, {}, std::move(calls)};
  }

  /// The root is born and gets code, data and a stack.
  void begin(Pid root, bool namespace_init = false) {
    application.root = root;
    application.root_is_namespace_init = namespace_init;
    auto fork = fork_of(root);
    fork.new_pid_namespace = namespace_init;
    supervisor(fork);
    does(root, plan::ClearMemory{});
    does(root, plan::MmapAnon{code_page, page_size, false, PROT_READ | PROT_WRITE, 0});
    plan::Open open{file("code"), O_RDONLY, 0, 50, {}};
    does(root, open);
    does(root, plan::LoadPages{50, 0, {code_page, page_size}});
    does(root, plan::Close{50});
    does(root, plan::Mprotect{code_page, page_size, PROT_READ | PROT_EXEC});
    does(root, plan::MmapAnon{data_page, page_size, false, PROT_READ | PROT_WRITE, 0});
    does(root, plan::MmapAnon{stack_page, 16 * page_size, false, PROT_READ | PROT_WRITE, 0});
  }
  void ready(Pid pid) {
    does(pid, plan::Close{program.images_fd});
    does(pid, plan::Ready{});
  }

  // ---- the application, as far as the last step needs it

  static model::Thread thread(Tid tid, uint64_t entry, uint64_t argument = 0) {
    user_regs_struct general{};
    general.rip = entry;
    general.rsp = stack_page + 16 * page_size - 64;
    general.rbx = data_page;
    general.r12 = argument;
    general.cs = 0x33;
    general.ss = 0x2b;
    general.eflags = 0x202;
    model::Thread made;
    made.tid = tid;
    made.name = "test";
    made.registers.general = bytes_of(general);
    made.registers.extended.resize(576);  // the legacy area and the header of XSAVE: the initial state
    const uint16_t control = 0x37f;
    const uint32_t mxcsr = 0x1f80;
    std::memcpy(made.registers.extended.data(), &control, sizeof control);
    std::memcpy(made.registers.extended.data() + 24, &mxcsr, sizeof mxcsr);
    return made;
  }
  model::Task& task(Pid pid, Pid parent, const uint8_t* code, uint64_t argument = 0) {
    model::Task made;
    made.pid = pid;
    made.parent = parent;
    made.address_space = ObjectId{static_cast<uint32_t>(application.tasks.size()) + 1};
    made.threads.push_back(thread(leader_of(pid), address_of(code), argument));
    application.tasks.push_back(std::move(made));
    return application.tasks.back();
  }

  // ---- running it

  Status build() {
    auto built = BuiltTree::build(program, application, *images, options);
    if (!built) return fail(built.error());
    tree = std::move(*built);
    if (tree->host_root() > 0) created_.push_back(tree->host_root());
    return {};
  }
  Status build_and_resume() {
    TRY(build());
    return tree->resume();
  }
  static int reap(pid_t pid) {
    int status = -1;
    EXPECT_EQ(waitpid(pid, &status, __WALL), pid) << strerror(errno);
    return status;
  }
  static bool exists(Pid pid) { return kill(pid.value, 0) == 0 || errno != ESRCH; }
  static char state_of(pid_t pid) {
    const auto stat = kernel::read_stat(pid);
    return stat ? stat->state : '-';
  }
  /// No process of the program, no child of ours, no file but those that were there.
  void expect_nothing_left(const std::vector<Pid>& pids, const std::string& when) {
    for (const Pid pid : pids) EXPECT_FALSE(exists(pid)) << when << ": pid " << pid.value << " is left";
    EXPECT_EQ(waitpid(-1, nullptr, WNOHANG | __WALL), -1) << when << ": a child is left";
    EXPECT_EQ(errno, ECHILD) << when;
    for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
      EXPECT_EQ(entry.path().filename(), "code") << when << ": a file is left";
    }
    EXPECT_EQ(fcntl(program.images_fd, F_GETFD), -1) << when << ": the descriptor of the images is left";
  }

  plan::Program program;
  model::Application application;
  ExecuteOptions options;
  std::unique_ptr<image::Directory> images;
  std::unique_ptr<BuiltTree> tree;

 private:
  std::filesystem::path directory_;
  std::vector<pid_t> created_;
};

}  // namespace stasis::execute
