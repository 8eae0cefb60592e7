// The readers and wrappers on ourselves and on forked children.
#include <elf.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <thread>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/unique_fd.h"
#include "kernel/proc.h"
#include "kernel/processes.h"
#include "kernel/process.h"
#include "kernel/ptrace.h"

namespace stasis::kernel {
namespace {

/// A child that runs `body` and then sleeps; `ready` tells when the body is done.
class Child {
 public:
  explicit Child(const std::function<void()>& body = [] {}) {
    int ready[2];
    EXPECT_EQ(pipe(ready), 0);
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      body();
      // After a strict seccomp mode only write and the like are left, so nothing else happens here.
      if (write(ready[1], "x", 1) != 1) _exit(1);
      for (;;) {
        char byte;
        if (read(ready[0], &byte, 0) < 0) _exit(1);
      }
    }
    close(ready[1]);
    char byte;
    EXPECT_EQ(read(ready[0], &byte, 1), 1);
    close(ready[0]);
  }
  ~Child() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, __WALL);
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
};

void seize_and_stop(pid_t pid, uint64_t options = 0) {
  ASSERT_TRUE(ptrace_seize(pid, options));
  ASSERT_TRUE(ptrace_interrupt(pid));
  const auto waited = wait_for(pid);
  ASSERT_TRUE(waited);
  ASSERT_TRUE(waited->status.stopped()) << waited->status.describe();
  ASSERT_EQ(waited->status.ptrace_event(), PTRACE_EVENT_STOP);
}

TEST(ProcLive, Self) {
  const auto stat = read_stat(getpid());
  ASSERT_TRUE(stat) << stat.error().message();
  EXPECT_EQ(stat->ppid, getppid());
  EXPECT_EQ(stat->session, getsid(0));
  const auto status = read_status(getpid());
  ASSERT_TRUE(status) << status.error().message();
  EXPECT_EQ(status->pid, getpid());
  EXPECT_EQ(status->uids[1], geteuid());
  EXPECT_EQ(status->ns_pid.back(), getpid());
  const auto limits = read_limits(getpid());
  ASSERT_TRUE(limits);
  rlimit expected{};
  getrlimit(RLIMIT_NOFILE, &expected);
  EXPECT_EQ((*limits)[RLIMIT_NOFILE].soft, expected.rlim_cur);
  EXPECT_THAT(*read_auxv(getpid()), testing::Contains(getauxval(AT_ENTRY)));
  EXPECT_TRUE(read_timers(getpid())->empty());
}

TEST(ProcLive, MapsAndSmapsAgree) {
  const auto maps = read_maps(getpid());
  ASSERT_TRUE(maps);
  const auto smaps = read_smaps(getpid());
  ASSERT_TRUE(smaps);
  EXPECT_THAT(*smaps, testing::Contains(testing::Field(&MapsEntry::path, "[stack]")));
  bool flags = true;
  for (const auto& entry : *smaps) flags = flags && (entry.has_vm_flags || entry.path == "[vsyscall]");
  EXPECT_TRUE(flags);
}

TEST(ProcLive, ThreadsChildrenDescriptors) {
  Child child;
  std::thread other([&] {
    const auto threads = list_threads(getpid());
    ASSERT_TRUE(threads);
    EXPECT_GE(threads->size(), 2u);
    EXPECT_EQ(threads->front(), getpid());
    EXPECT_EQ(*count_threads(getpid()), threads->size());
  });
  other.join();
  EXPECT_THAT(*list_children(getpid()), testing::Contains(child.pid()));
  EXPECT_THAT(*list_processes(), testing::IsSupersetOf({child.pid(), getpid()}));
  EXPECT_THAT(has_children(getpid(), 1 << 20), testing::AnyOf(true, std::nullopt));
  EXPECT_THAT(has_children(child.pid(), 1 << 20), testing::AnyOf(false, std::nullopt));
  EXPECT_EQ(has_children(getpid(), 1), std::nullopt) << "one question cannot do";
  const auto fds = list_descriptors(getpid());
  ASSERT_TRUE(fds);
  EXPECT_TRUE(std::is_sorted(fds->begin(), fds->end()));
  EXPECT_THAT(*fds, testing::IsSupersetOf({0, 1, 2}));
}

TEST(ProcLive, FdInfoAndLinks) {
  UniqueFd file(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  lseek(file.get(), 100, SEEK_SET);
  const auto info = read_fdinfo(getpid(), file.get());
  ASSERT_TRUE(info);
  EXPECT_EQ(info->position, 100u);
  EXPECT_EQ(info->flags & O_ACCMODE, static_cast<uint32_t>(O_RDONLY));
  EXPECT_EQ(*read_link(fmt::format("/proc/{}/fd/{}", getpid(), file.get())), *read_link("/proc/self/exe"));
}

TEST(ProcLive, TheDeadAreGone) {
  pid_t pid = 0;
  {
    pid = Child().pid();
  }
  EXPECT_EQ(read_stat(pid).error().code(), ErrorCode::gone);
  EXPECT_EQ(list_threads(pid).error().code(), ErrorCode::gone);
  EXPECT_EQ(list_children(pid).error().code(), ErrorCode::gone);
  EXPECT_EQ(pidfd_open(pid).error().code(), ErrorCode::gone);
  EXPECT_EQ(ptrace_seize(pid, 0).error().code(), ErrorCode::gone);
  uint8_t byte = 0;
  EXPECT_EQ(read_memory(pid, RemoteAddress{0x1000}, {&byte, 1}).error().code(), ErrorCode::gone);
  // A file that this kernel never had is something else.
  EXPECT_EQ(read_proc(getpid(), "no such file").error().errno_value(), ENOENT);
}

TEST(ProcLive, SmapsOfManyIsFast) {
  constexpr int rounds = 200;
  Child child;
  const auto time_of_ours = [] {
    timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return time.tv_sec * 1000 + time.tv_nsec / 1'000'000;
  };
  const auto before = time_of_ours();
  for (int round = 0; round < rounds; ++round) ASSERT_TRUE(read_smaps(child.pid()));
  const auto milliseconds = time_of_ours() - before;
  RecordProperty("milliseconds", static_cast<int>(milliseconds));
  EXPECT_LT(milliseconds, 2000);  // tens on an idle machine; the bound is for busy ones with sanitizers
}

TEST(ProcessLive, KcmpOrdersObjects) {
  Child child;
  EXPECT_NE(*kcmp(getpid(), child.pid(), KcmpType::files), std::strong_ordering::equal);
  EXPECT_EQ(*kcmp(getpid(), getpid(), KcmpType::vm), std::strong_ordering::equal);
  const auto there = *kcmp(getpid(), child.pid(), KcmpType::vm);
  const auto back = *kcmp(child.pid(), getpid(), KcmpType::vm);
  EXPECT_NE(there == std::strong_ordering::less, back == std::strong_ordering::less);
  // fork shares open file descriptions.
  EXPECT_EQ(*kcmp(getpid(), child.pid(), KcmpType::file, 1, 1), std::strong_ordering::equal);
}

TEST(ProcessLive, MemoryThroughProtections) {
  auto* page =
      static_cast<uint8_t*>(mmap(nullptr, page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  std::memset(page, 'a', page_size);
  Child child([&] { mprotect(page, page_size, PROT_NONE); });
  const RemoteAddress address{reinterpret_cast<uint64_t>(page)};
  seize_and_stop(child.pid());
  uint8_t read[8]{};
  const auto status = read_memory(child.pid(), address, read);
  ASSERT_TRUE(status) << status.error().message();
  EXPECT_EQ(read[0], 'a');
  const Bytes data{'x', 'y', 'z'};
  ASSERT_TRUE(write_memory(child.pid(), address, data));
  ASSERT_TRUE(read_memory(child.pid(), address, read));
  EXPECT_EQ(std::memcmp(read, "xyza", 4), 0);
  EXPECT_FALSE(read_memory(child.pid(), RemoteAddress{0x10}, read));
  munmap(page, page_size);
}

TEST(ProcessLive, PidfdGetfdAndKill) {
  pid_t pid = fork();
  if (pid == 0) {
    pause();
    _exit(0);
  }
  const auto fd = pidfd_open(pid);
  ASSERT_TRUE(fd);
  const auto copy = pidfd_getfd(fd->get(), 1);
  ASSERT_TRUE(copy);
  EXPECT_EQ(*kcmp(getpid(), getpid(), KcmpType::file, copy->get(), 1), std::strong_ordering::equal);
  EXPECT_EQ(pidfd_getfd(fd->get(), 999).error().errno_value(), EBADF);
  ASSERT_TRUE(pidfd_kill(fd->get(), SIGKILL));
  EXPECT_TRUE(wait_for(pid)->status.killed());
  EXPECT_EQ(pidfd_kill(fd->get(), 0).error().code(), ErrorCode::gone);
}

TEST(ProcessLive, ScanFindsTouchedPages) {
  constexpr size_t pages = 16;
  auto* area = static_cast<uint8_t*>(
      mmap(nullptr, pages * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  madvise(area, pages * page_size, MADV_NOHUGEPAGE);
  for (const size_t index : {2, 3, 9}) area[index * page_size] = 1;
  UniqueFd pagemap(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  const uint64_t base = reinterpret_cast<uint64_t>(area);
  const auto scans =
      scan_pages(pagemap.get(), {base, base + pages * page_size}, page_is_present, 0, 0, page_is_present);
  ASSERT_TRUE(scans) << scans.error().message();
  ASSERT_EQ(scans->size(), 2u);
  EXPECT_EQ((*scans)[0].range, (AddressRange{base + 2 * page_size, base + 4 * page_size}));
  EXPECT_EQ((*scans)[1].range, (AddressRange{base + 9 * page_size, base + 10 * page_size}));
  const auto words = read_pagemap(pagemap.get(), {base, base + pages * page_size});
  ASSERT_TRUE(words);
  EXPECT_EQ((*words)[2] >> 63, 1u);
  EXPECT_EQ((*words)[4] >> 63, 0u);
  munmap(area, pages * page_size);
}

TEST(PtraceLive, RegistersMaskAndQueues) {
  Child child([] {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, nullptr);
    raise(SIGUSR1);
    for (int value = 0; value < 40; ++value) sigqueue(getpid(), SIGRTMIN, sigval{.sival_int = value});
  });
  seize_and_stop(child.pid());
  const auto general = ptrace_get_regset(child.pid(), NT_PRSTATUS);
  ASSERT_TRUE(general);
  EXPECT_EQ(general->size(), sizeof(user_regs_struct));
  ASSERT_TRUE(ptrace_set_regset(child.pid(), NT_PRSTATUS, *general));
  EXPECT_GT(ptrace_get_regset(child.pid(), NT_X86_XSTATE)->size(), 512u);
  const uint64_t mask = *ptrace_get_sigmask(child.pid());
  EXPECT_TRUE(mask >> (SIGUSR1 - 1) & 1);
  ASSERT_TRUE(ptrace_set_sigmask(child.pid(), mask | 1 << (SIGUSR2 - 1)));
  EXPECT_EQ(*ptrace_get_sigmask(child.pid()), mask | 1 << (SIGUSR2 - 1));
  const auto own = ptrace_peek_siginfo(child.pid(), false);
  ASSERT_TRUE(own);
  EXPECT_EQ(own->size(), 1u);
  const auto shared = ptrace_peek_siginfo(child.pid(), true);
  ASSERT_TRUE(shared);
  EXPECT_EQ(shared->size(), 40u);
  EXPECT_EQ(shared->front().size(), sizeof(siginfo_t));
  ASSERT_TRUE(ptrace_detach(child.pid()));
}

TEST(PtraceLive, SeccompFilters) {
  Child child([] {
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    for (unsigned value : {1u, 2u}) {
      sock_filter instructions[3] = {
          {BPF_LD | BPF_IMM, 0, 0, value}, {BPF_LD | BPF_IMM, 0, 0, 0}, {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}};
      sock_fprog program{static_cast<unsigned short>(value + 1), instructions + 2 - value};
      syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, value == 2 ? SECCOMP_FILTER_FLAG_LOG : 0, &program);
    }
  });
  seize_and_stop(child.pid());
  // Index 0 is the first installed: kernel/seccomp.c, get_nth_filter() counts from the root of the chain.
  const auto first = ptrace_get_seccomp_filter(child.pid(), 0);
  ASSERT_TRUE(first) << first.error().message();
  ASSERT_TRUE(first->has_value());
  EXPECT_EQ((*first)->program.size(), 2 * sizeof(sock_filter));
  EXPECT_EQ((*first)->flags, 0u);
  const auto second = ptrace_get_seccomp_filter(child.pid(), 1);
  ASSERT_TRUE(second->has_value());
  EXPECT_EQ((*second)->program.size(), 3 * sizeof(sock_filter));
  EXPECT_EQ((*second)->flags, static_cast<uint64_t>(SECCOMP_FILTER_FLAG_LOG));
  EXPECT_FALSE(ptrace_get_seccomp_filter(child.pid(), 2)->has_value());
}

TEST(PtraceLive, RseqOfAThreadOfGlibc) {
  Child child;
  seize_and_stop(child.pid());
  const auto rseq = ptrace_get_rseq(child.pid());
  ASSERT_TRUE(rseq) << rseq.error().message();
  if (rseq->address != 0) {
    EXPECT_GE(rseq->size, 32u);
    EXPECT_EQ(rseq->signature, 0x53053053u);
  }
}

TEST(WaitStatus, Kinds) {
  EXPECT_TRUE(WaitStatus(3 << 8).exited());
  EXPECT_TRUE(WaitStatus(SIGKILL).killed());
  const WaitStatus group(PTRACE_EVENT_STOP << 16 | SIGTSTP << 8 | 0x7f);
  EXPECT_TRUE(group.is_group_stop());
  const WaitStatus interrupted(PTRACE_EVENT_STOP << 16 | SIGTRAP << 8 | 0x7f);
  EXPECT_FALSE(interrupted.is_group_stop());
  EXPECT_EQ(interrupted.ptrace_event(), PTRACE_EVENT_STOP);
  EXPECT_TRUE(WaitStatus((SIGTRAP | 0x80) << 8 | 0x7f).is_syscall_stop());
  EXPECT_EQ(WaitStatus((SIGTRAP | 0x80) << 8 | 0x7f).stop_signal(), SIGTRAP);
}

}  // namespace
}  // namespace stasis::kernel
