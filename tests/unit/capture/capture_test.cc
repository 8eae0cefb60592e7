// Capture of real children: what it sees, and that they do not notice.
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/fanotify.h>
#include <sys/ptrace.h>
#include <sys/rseq.h>

#include <cmath>
#include <filesystem>
#include <thread>

#include "capture/arch/x86_64/task_code.h"
#include "specimen.h"

namespace stasis::capture {
namespace {

using testing::HasSubstr;

#define ASSERT_OK(expression)                          \
  do {                                                 \
    const auto& outcome = (expression);                \
    ASSERT_TRUE(outcome) << outcome.error().message(); \
  } while (false)

// ---- what is seen

TEST(Capture, SingleProcessAnswersAndGoesOn) {
  Shared<std::atomic<uint64_t>> counter;
  Specimen specimen([&] {
    prctl(PR_SET_NAME, "specimen");
    while (*counter < 1u << 30) ++*counter;
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return *counter > 1000; }));
  const size_t mappings = mappings_of(specimen.pid());
  auto captive = Captive::take(specimen.pid());
  ASSERT_OK(captive);
  const uint64_t stopped_at = *counter;
  const auto& application = (*captive)->context.application;
  ASSERT_EQ(application.tasks.size(), 1u);
  EXPECT_EQ(application.root.value, specimen.pid());
  EXPECT_EQ(application.tasks[0].session.value, specimen.pid());
  EXPECT_EQ(application.tasks[0].parent.value, 0);
  EXPECT_EQ(application.tasks[0].threads[0].name, "specimen");
  EXPECT_EQ((*captive)->who.seen.at(0).pid, specimen.pid());
  EXPECT_EQ((*captive)->who.seen.at(0).name, "specimen");
  usleep(2000);
  EXPECT_EQ(*counter, stopped_at);
  EXPECT_EQ(mappings_of(specimen.pid()), mappings);
  ASSERT_OK((*captive)->release(AfterDump::let_run));
  EXPECT_TRUE(eventually([&] { return *counter > stopped_at + 1000; }));
}

TEST(Capture, ThreadsAreAskedEach) {
  Shared<std::atomic<int>> running;
  Specimen specimen([&] {
    std::vector<std::thread> threads;
    for (int index = 0; index < 8; ++index) {
      threads.emplace_back([&, index] {
        prctl(PR_SET_NAME, ("thread-" + std::to_string(index)).c_str());
        ++*running;
        for (;;) index % 2 == 0 ? (void)usleep(1000) : (void)sched_yield();
      });
    }
    for (;;) pause();
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return *running == 8; }));
  auto captive = Captive::take(specimen.pid());
  ASSERT_OK(captive);
  const auto& task = (*captive)->context.application.tasks.at(0);
  ASSERT_EQ(task.threads.size(), 9u);
  EXPECT_EQ(task.threads[0].tid.value, specimen.pid());
  const auto& seen = (*captive)->who.seen;
  ASSERT_EQ(seen.size(), 9u);
  for (size_t index = 0; index < seen.size(); ++index) {
    EXPECT_EQ(seen[index].tid, task.threads[index].tid.value);
    EXPECT_EQ(seen[index].pid, specimen.pid());
    EXPECT_EQ(seen[index].name, task.threads[index].name);
  }
  ASSERT_OK((*captive)->release(AfterDump::kill));
  EXPECT_TRUE(WIFSIGNALED(specimen.wait()));
}

/// Its memory and files are seen, and the process is asked, through a thread that lives.
TEST(Capture, FirstThreadHasEnded) {
  Shared<std::atomic<pid_t>> other, child;
  Specimen specimen([&] {
    std::thread([&] {
      *child = fork();
      if (*child == 0) {
        for (;;) pause();
      }
      *other = gettid();
      for (;;) pause();
    }).detach();
    syscall(SYS_exit, 7);
    return 0;
  });
  ASSERT_TRUE(eventually([&] {
    const auto stat = kernel::read_stat(specimen.pid());
    return *other != 0 && stat && stat->has_left_threads();
  }));
  auto captive = Captive::take(specimen.pid());
  ASSERT_OK(captive);
  const auto& task = (*captive)->context.application.tasks.at(0);
  EXPECT_EQ(task.state, model::TaskState::running);
  ASSERT_EQ(task.threads.size(), 2u);
  EXPECT_EQ(task.threads[0].tid.value, specimen.pid());
  EXPECT_EQ(task.threads[0].exit_status, 7 << 8);
  EXPECT_EQ(task.threads[1].tid.value, *other);
  EXPECT_FALSE(task.threads[1].has_ended());
  EXPECT_EQ((*captive)->context.witness(task), *other);
  ASSERT_EQ((*captive)->who.seen.size(), 2u);  // the other thread's answer, and the child's
  EXPECT_EQ((*captive)->who.seen[0].tid, *other);
  EXPECT_EQ((*captive)->context.application.tasks.at(1).parent.value, specimen.pid());
  ASSERT_OK((*captive)->release(AfterDump::kill));
  EXPECT_TRUE(WIFSIGNALED(specimen.wait()));
}

/// Before it is seized, between that and its stop (of which nobody is told before the other threads have ended), after.
TEST(Capture, FirstThreadEndsMeanwhile) {
  for (int round = 0; round < 200; ++round) {
    Shared<std::atomic<pid_t>> other;
    Shared<std::atomic<bool>> go;
    Specimen specimen([&] {
      std::thread([&] {
        *other = gettid();
        for (;;) pause();
      }).detach();
      while (!*go) {
      }
      for (int step = 0; step < round * 500; ++step) asm volatile("");
      syscall(SYS_exit, 0);
      return 0;
    });
    ASSERT_TRUE(eventually([&] { return *other != 0; }));
    auto captive = Captive::take(specimen.pid(), [&](std::string_view point) { *go = *go || point == "seizing"; });
    ASSERT_OK(captive);
    ASSERT_FALSE((*captive)->context.diagnostics.refused());
    const auto& task = (*captive)->context.application.tasks.at(0);
    EXPECT_EQ(task.threads.size(), 2u);
    EXPECT_EQ((*captive)->who.seen.size(), task.leader_has_ended() ? 1u : 2u);
    ASSERT_OK((*captive)->release(AfterDump::kill));
    EXPECT_TRUE(WIFSIGNALED(specimen.wait()));
  }
}

TEST(Capture, TreeWithZombieAndGroups) {
  Shared<std::atomic<pid_t>> zombie, grandchild;
  Specimen specimen([&] {
    if (fork() == 0) {
      setpgid(0, 0);
      if (const pid_t pid = fork(); pid != 0) {
        *grandchild = pid;
      }
      for (;;) pause();
    }
    const pid_t dead = fork();
    if (dead == 0) _exit(7);
    siginfo_t info;
    waitid(P_PID, dead, &info, WEXITED | WNOWAIT);
    *zombie = dead;
    for (;;) pause();
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return *zombie != 0 && *grandchild != 0; }));
  auto captive = Captive::take(specimen.pid());
  ASSERT_OK(captive);
  const auto& application = (*captive)->context.application;
  ASSERT_EQ(application.tasks.size(), 4u);
  const auto* dead = application.find(Pid{*zombie});
  ASSERT_NE(dead, nullptr);
  EXPECT_EQ(dead->state, model::TaskState::zombie);
  EXPECT_EQ(dead->exit_status, 7 << 8);
  EXPECT_EQ(dead->parent.value, specimen.pid());
  EXPECT_TRUE(dead->threads.empty());
  const auto* last = application.find(Pid{*grandchild});
  ASSERT_NE(last, nullptr);
  EXPECT_EQ(last->group, last->parent);
  EXPECT_EQ(last->session.value, specimen.pid());
  const pid_t killed = *grandchild;
  ASSERT_OK((*captive)->release(AfterDump::kill));
  EXPECT_TRUE(WIFSIGNALED(specimen.wait()));
  EXPECT_TRUE(eventually([&] { return kill(killed, 0) != 0; }));
}

pid_t raw_clone(uint64_t flags) { return static_cast<pid_t>(syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0)); }

TEST(Capture, SharedObjectsAcrossProcesses) {
  // A separate stack for the child that shares memory; it only spins.
  Shared<std::atomic<int>> started;
  Specimen specimen([&] {
    static uint8_t stack[64 << 10];
    const auto spin = [](void* count) {
      ++*static_cast<std::atomic<int>*>(count);
      for (;;) sched_yield();
      return 0;
    };
    clone(spin, stack + sizeof stack, CLONE_VM | CLONE_FILES | CLONE_SIGHAND | SIGCHLD, &*started);
    for (const uint64_t flags : {uint64_t{CLONE_FILES}, uint64_t{CLONE_FS}}) {
      if (raw_clone(flags) == 0) {
        ++*started;
        for (;;) pause();
      }
    }
    for (;;) pause();
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return *started == 3; }));
  auto captive = Captive::take(specimen.pid());
  ASSERT_OK(captive);
  const auto& tasks = (*captive)->context.application.tasks;
  ASSERT_EQ(tasks.size(), 4u);
  EXPECT_EQ(tasks[1].address_space, tasks[0].address_space);
  EXPECT_EQ(tasks[1].handlers, tasks[0].handlers);
  EXPECT_EQ(tasks[1].descriptors, tasks[0].descriptors);
  EXPECT_NE(tasks[1].fs, tasks[0].fs);
  EXPECT_EQ(tasks[2].descriptors, tasks[0].descriptors);
  EXPECT_NE(tasks[2].address_space, tasks[0].address_space);
  EXPECT_EQ(tasks[3].fs, tasks[0].fs);
  EXPECT_NE(tasks[3].descriptors, tasks[0].descriptors);
  EXPECT_EQ((*captive)->who.seen.at(1).pid, tasks[1].pid.value);
  ASSERT_OK((*captive)->release(AfterDump::kill));
  specimen.wait();
}

// ---- interrupted system calls

struct Outcome {
  std::atomic<bool> done = false;
  std::atomic<int64_t> result = -1, error = 0, microseconds = 0;
};

void measure(Outcome& outcome, const std::function<int64_t()>& call) {
  const auto before = std::chrono::steady_clock::now();
  const int64_t result = call();
  outcome.error = result < 0 ? errno : 0;
  outcome.result = result;
  outcome.microseconds =
      std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - before).count();
  outcome.done = true;
}

/// Captures the specimen while it is inside `number`, twice, and lets it run.
void disturb(Specimen& specimen, int number, const Outcome& outcome) {
  for (int round = 0; round < 2; ++round) {
    ASSERT_TRUE(
        eventually([&] { return outcome.done || specimen.is_in(number) || specimen.is_in(SYS_restart_syscall); }));
    usleep(100'000);
    if (outcome.done) return;
    auto captive = Captive::take(specimen.pid());
    ASSERT_OK(captive);
    ASSERT_OK((*captive)->release(AfterDump::let_run));
  }
}

struct TimedCase {
  const char* name;
  int number;
  std::function<int64_t()> call;
  int64_t expected;
  int error = 0;
};

class TimedCalls : public testing::TestWithParam<TimedCase> {};

TEST_P(TimedCalls, LastAsLongAsAsked) {
  const auto& timed = GetParam();
  // A busy machine lets a call last longer. One that begins anew after each capture always does.
  constexpr int attempts = 20;
  int64_t shortest = std::numeric_limits<int64_t>::max();
  for (int attempt = 0; attempt < attempts && shortest >= 300'000 + 90'000; ++attempt) {
    Shared<Outcome> outcome;
    Specimen specimen([&] {
      measure(*outcome, timed.call);
      return 0;
    });
    disturb(specimen, timed.number, *outcome);
    specimen.expect_success();
    EXPECT_EQ(outcome->result, timed.expected) << strerror(static_cast<int>(outcome->error));
    EXPECT_EQ(outcome->error, timed.error);
    EXPECT_GE(outcome->microseconds, 300'000 - 1000);
    shortest = std::min<int64_t>(shortest, outcome->microseconds);
  }
  EXPECT_LT(shortest, 300'000 + 90'000);
}

constexpr timespec tenths_3{0, 300'000'000};
uint32_t futex_word = 0;

INSTANTIATE_TEST_SUITE_P(
    Calls, TimedCalls,
    testing::Values(TimedCase{"nanosleep", SYS_nanosleep, [] { return syscall(SYS_nanosleep, &tenths_3, nullptr); }, 0},
                    TimedCase{"clock_nanosleep", SYS_clock_nanosleep,
                              [] { return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &tenths_3, nullptr); }, 0},
                    TimedCase{"poll", SYS_poll, [] { return syscall(SYS_poll, nullptr, 0, 300); }, 0},
                    TimedCase{"ppoll", SYS_ppoll,
                              [] {
                                timespec time = tenths_3;
                                sigset_t set;
                                sigemptyset(&set);
                                return syscall(SYS_ppoll, nullptr, 0, &time, &set, 8);
                              },
                              0},
                    TimedCase{"pselect6", SYS_pselect6,
                              [] {
                                timespec time = tenths_3;
                                return syscall(SYS_pselect6, 0, nullptr, nullptr, nullptr, &time, nullptr);
                              },
                              0},
                    TimedCase{"futex", SYS_futex,
                              [] { return syscall(SYS_futex, &futex_word, FUTEX_WAIT, 0, &tenths_3, nullptr, 0); }, -1,
                              ETIMEDOUT}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Interrupted, ReadWaitsOnAndGetsItsData) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  Shared<Outcome> outcome;
  Specimen specimen([&] {
    char byte = 0;
    measure(*outcome, [&] { return read(ends[0], &byte, 1) == 1 ? byte : -1; });
    return 0;
  });
  disturb(specimen, SYS_read, *outcome);
  EXPECT_FALSE(outcome->done);
  ASSERT_EQ(write(ends[1], "x", 1), 1);
  specimen.expect_success();
  EXPECT_EQ(outcome->result, 'x');
  close(ends[0]);
  close(ends[1]);
}

void ignore_signal(int) {}

TEST(Interrupted, PauseAndSigsuspendEndWithTheirSignalOnly) {
  for (const bool suspend : {false, true}) {
    Shared<Outcome> outcome;
    Specimen specimen([&] {
      signal(SIGUSR1, ignore_signal);
      sigset_t set, none;
      sigemptyset(&set);
      sigemptyset(&none);
      sigaddset(&set, SIGUSR1);
      if (suspend) sigprocmask(SIG_BLOCK, &set, nullptr);
      measure(*outcome, [&] { return suspend ? sigsuspend(&none) : pause(); });
      sigprocmask(SIG_BLOCK, nullptr, &none);
      return sigismember(&none, SIGUSR1) == suspend ? 0 : 1;
    });
    disturb(specimen, suspend ? SYS_rt_sigsuspend : SYS_pause, *outcome);
    usleep(10'000);
    EXPECT_FALSE(outcome->done);
    kill(specimen.pid(), SIGUSR1);
    specimen.expect_success();
    EXPECT_EQ(outcome->error, EINTR);
  }
}

TEST(Interrupted, ASignalThatCameDuringTheCaptureEndsPause) {
  Shared<Outcome> outcome;
  Specimen specimen([&] {
    signal(SIGUSR1, ignore_signal);
    measure(*outcome, [&] { return pause(); });
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return specimen.is_in(SYS_pause); }));
  bool sent = false;
  auto captive = Captive::take(specimen.pid(), [&](std::string_view point) {
    if (point == "agent-mask" && !std::exchange(sent, true)) kill(specimen.pid(), SIGUSR1);
  });
  ASSERT_OK(captive);
  EXPECT_TRUE(sent);
  ASSERT_OK((*captive)->release(AfterDump::let_run));
  specimen.expect_success();
  EXPECT_EQ(outcome->error, EINTR);
}

TEST(Interrupted, ImagesEndACallWhoseSignalWaits) {
  Bytes general(27 * 8);
  auto* words = reinterpret_cast<uint64_t*>(general.data());
  constexpr int rax = 10, orig_rax = 15, rip = 16;
  words[rip] = 0x1002;
  words[orig_rax] = SYS_pause;
  words[rax] = static_cast<uint64_t>(-514);
  const auto word = [](const Bytes& bytes, int index) {
    return reinterpret_cast<const uint64_t*>(bytes.data())[index];
  };
  const Bytes again = plain_registers(general, Resumption::image, Handler::none);
  EXPECT_EQ(word(again, rip), 0x1000u);
  EXPECT_EQ(word(again, rax), static_cast<uint64_t>(SYS_pause));
  EXPECT_EQ(word(again, orig_rax), ~uint64_t{0});
  const Bytes ended = plain_registers(general, Resumption::image, Handler::restarts);
  EXPECT_EQ(word(ended, rip), 0x1002u);
  EXPECT_EQ(word(ended, rax), static_cast<uint64_t>(-EINTR));
  words[rax] = static_cast<uint64_t>(-512);
  EXPECT_EQ(word(plain_registers(general, Resumption::image, Handler::restarts), rax),
            static_cast<uint64_t>(SYS_pause));
  EXPECT_EQ(word(plain_registers(general, Resumption::image, Handler::interrupts), rax), static_cast<uint64_t>(-EINTR));
  words[rax] = static_cast<uint64_t>(-516);
  EXPECT_EQ(word(plain_registers(general, Resumption::live, Handler::none), rax),
            static_cast<uint64_t>(SYS_restart_syscall));
  EXPECT_EQ(word(plain_registers(general, Resumption::image, Handler::none), rax), static_cast<uint64_t>(SYS_pause));
  words[orig_rax] = ~uint64_t{0};
  EXPECT_EQ(word(plain_registers(general, Resumption::image, Handler::none), rax), static_cast<uint64_t>(-516));
}

TEST(TaskCode, FitsItsSpace) { EXPECT_LE(make_stub(Bytes(27 * 8), 0, {0x1000, 0x2000}).code.size(), stub_space); }

// ---- states

TEST(Capture, StoppedTaskAnswersAndStaysStopped) {
  Shared<std::atomic<uint64_t>> counter;
  Specimen specimen([&] {
    std::thread other([&] {
      for (;;) ++*counter;
    });
    for (;;) usleep(100);
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return *counter > 1000; }));
  kill(specimen.pid(), SIGTSTP);
  kill(specimen.pid(), SIGSTOP);  // the group is orphaned: SIGTSTP alone would be ignored
  ASSERT_TRUE(eventually([&] { return specimen.state() == 'T'; }));
  for (int round = 0; round < 3; ++round) {
    auto captive = Captive::take(specimen.pid());
    ASSERT_OK(captive);
    const auto& task = (*captive)->context.application.tasks.at(0);
    EXPECT_EQ(task.state, model::TaskState::stopped);
    EXPECT_EQ(task.stop_signal, SIGSTOP);
    EXPECT_EQ((*captive)->who.seen.size(), 2u);
    EXPECT_EQ((*captive)->who.seen[0].pid, specimen.pid());
    ASSERT_OK((*captive)->release(AfterDump::let_run));
    ASSERT_TRUE(eventually([&] { return specimen.state() == 'T'; }));
    const uint64_t before = *counter;
    usleep(5000);
    EXPECT_EQ(specimen.state(), 'T');
    EXPECT_EQ(*counter, before);
  }
  const uint64_t before = *counter;
  kill(specimen.pid(), SIGCONT);
  EXPECT_TRUE(eventually([&] { return *counter > before + 1000; }));
}

/// Both come while the agent is in the task: the one is taken from it and kept, the other waits, because it is blocked.
TEST(Capture, StoppedAndContinuedMeanwhile) {
  for (const bool continued : {true, false}) {
    Shared<std::atomic<uint64_t>> counter;
    Specimen specimen([&] {
      for (;;) ++*counter;
      return 0;
    });
    ASSERT_TRUE(eventually([&] { return *counter > 1000; }));
    auto captive = Captive::take(specimen.pid(), [&](std::string_view point) {
      if (point == "agent-mask") kill(specimen.pid(), SIGSTOP);
      if (point == "agent-done" && continued) kill(specimen.pid(), SIGCONT);
    });
    ASSERT_OK(captive);
    const uint64_t before = *counter;
    ASSERT_OK((*captive)->release(AfterDump::let_run));
    if (continued) {
      EXPECT_TRUE(eventually([&] { return *counter > before + 1000; })) << specimen.state();
    } else {
      EXPECT_TRUE(eventually([&] { return specimen.state() == 'T'; })) << specimen.state();
    }
  }
}

TEST(Capture, LeaveStopped) {
  Shared<std::atomic<uint64_t>> counter;
  Specimen specimen([&] {
    std::thread other([&] {
      for (;;) ++*counter;
    });
    if (fork() == 0) {
      for (;;) pause();
    }
    for (;;) ++*counter;
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return *counter > 1000; }));
  auto captive = Captive::take(specimen.pid());
  ASSERT_OK(captive);
  const uint64_t before = *counter;
  ASSERT_OK((*captive)->release(AfterDump::leave_stopped));
  EXPECT_EQ(specimen.state(), 'T');
  usleep(5000);
  EXPECT_EQ(*counter, before);
  kill(specimen.pid(), SIGCONT);
  EXPECT_TRUE(eventually([&] { return *counter > before + 1000; }));
}

TEST(Capture, SeccompStrict) {
  Shared<std::atomic<uint64_t>> counter;
  Specimen specimen([&] {
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) return 1;
    while (*counter < 1u << 30) ++*counter;
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return *counter > 1000; }));
  for (int round = 0; round < 5; ++round) {
    auto captive = Captive::take(specimen.pid());
    ASSERT_OK(captive);
    const uint64_t before = *counter;
    ASSERT_FALSE((*captive)->context.diagnostics.refused()) << (*captive)->context.diagnostics.all().front().text();
    EXPECT_EQ((*captive)->who.seen.at(0).pid, specimen.pid());
    ASSERT_OK((*captive)->release(AfterDump::let_run));
    ASSERT_TRUE(eventually([&] { return *counter > before + 1000; }));
  }
}

TEST(Capture, ExtendedRegistersSurvive) {
  Shared<std::atomic<uint64_t>> rounds;
  Specimen specimen([&] {
    if (!__builtin_cpu_supports("avx2")) return 0;
    alignas(32) uint64_t pattern[4] = {0x1111, 0x2222, 0x3333, 0x4444};
    alignas(32) uint64_t found[4];
    asm volatile("vmovdqa %0, %%ymm7" : : "m"(pattern));
    for (;;) {
      asm volatile("vmovdqa %%ymm7, %0" : "=m"(found));
      for (int index = 0; index < 4; ++index) {
        if (found[index] != pattern[index]) _exit(1);
      }
      if (++*rounds > 1u << 30) return 0;
    }
  });
  ASSERT_TRUE(eventually([&] { return *rounds > 1000 || specimen.state() == 'Z'; }));
  for (int round = 0; round < 20; ++round) {
    const uint64_t before = *rounds;
    auto captive = Captive::take(specimen.pid());
    ASSERT_OK(captive);
    const auto& extended = (*captive)->context.application.tasks.at(0).threads.at(0).registers.extended;
    EXPECT_GT(extended.size(), 512u);
    ASSERT_OK((*captive)->release(AfterDump::let_run));
    ASSERT_TRUE(eventually([&] { return *rounds > before + 100; }));
  }
}

/// Enters a restartable sequence that never ends, again and again as it is aborted.
[[noreturn]] void spin_in_restartable_sequence(std::atomic<uint64_t>& aborts) {
  // struct rseq_cs: version and flags, start, length, abort. struct rseq has the pointer to it at 8.
  asm volatile(
      ".pushsection .data.rseq_test, \"aw\"\n"
      ".balign 32\n"
      "77: .long 0, 0\n .quad 1f, 2f - 1f, 3f\n"
      ".popsection\n"
      "0: leaq 77b(%%rip), %%rax\n"
      "movq %%rax, %%fs:8(%[offset])\n"
      "1: jmp 1b\n"
      "2: ud2\n"
      ".byte 0x0f, 0xb9, 0x3d\n .long 0x53053053\n"
      "3: lock incq (%[aborts])\n"
      "jmp 0b\n"
      :
      : [offset] "r"(__rseq_offset), [aborts] "r"(&aborts)
      : "rax", "memory");
  __builtin_unreachable();
}

TEST(Capture, RestartableSequencesAreAborted) {
  if (__rseq_size == 0) GTEST_SKIP() << "glibc has registered no rseq area";
  Shared<std::atomic<uint64_t>> aborts;
  Specimen specimen([&] {
    spin_in_restartable_sequence(*aborts);
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return specimen.state() == 'R'; }));
  for (int round = 0; round < 20; ++round) {
    usleep(1000);
    const uint64_t before = *aborts;
    auto captive = Captive::take(specimen.pid());
    ASSERT_OK(captive);
    ASSERT_OK((*captive)->release(AfterDump::let_run));
    ASSERT_TRUE(eventually([&] { return *aborts > before; }));
  }
}

TEST(Capture, NoSignalToSpare) {
  Shared<std::atomic<uint64_t>> noticed, counter;
  Specimen specimen([&] {
    static std::atomic<uint64_t>* count = &*noticed;
    for (const int number : {SIGURG, SIGWINCH, SIGCHLD}) signal(number, [](int) { ++*count; });
    std::thread other([&] {
      for (;;) ++*counter;
    });
    for (;;) pause();
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return *counter > 1000; }));
  for (int round = 0; round < 10; ++round) {
    auto captive = Captive::take(specimen.pid());
    ASSERT_OK(captive);
    EXPECT_EQ((*captive)->who.seen.at(1).pid, specimen.pid());
    ASSERT_OK((*captive)->release(AfterDump::let_run));
  }
  usleep(10'000);
  EXPECT_EQ(*noticed, 0u);
}

TEST(Capture, PendingNotifySignalIsNeitherLostNorTaken) {
  Shared<std::atomic<int>> stage;
  Specimen specimen([&] {
    sigset_t set;
    sigemptyset(&set);
    for (const int number : {SIGURG, SIGWINCH}) sigaddset(&set, number);
    sigprocmask(SIG_BLOCK, &set, nullptr);
    *stage = 1;
    while (*stage == 1) sched_yield();
    int got = 0;
    const timespec none{};
    for (int number; (number = sigtimedwait(&set, nullptr, &none)) > 0;) got |= number == SIGURG ? 1 : 2;
    return got == 3 ? 0 : 1;
  });
  ASSERT_TRUE(eventually([&] { return *stage == 1; }));
  kill(specimen.pid(), SIGURG);
  bool sent = false;
  auto captive = Captive::take(specimen.pid(), [&](std::string_view point) {
    // The one that the agent uses now arrives from somebody else too.
    if (point == "agent-mask" && !std::exchange(sent, true)) kill(specimen.pid(), SIGWINCH);
  });
  ASSERT_OK(captive);
  ASSERT_OK((*captive)->release(AfterDump::let_run));
  *stage = 2;
  specimen.expect_success();
}

// ---- refusals

TEST(Refusals, NoSuchProcessAndOurselves) {
  EXPECT_THAT(Captive::take(0x3ffffe).error().message(), HasSubstr("no such process"));
  EXPECT_THAT(Captive::take(getpid()).error().message(), HasSubstr("stasis itself"));
  EXPECT_THAT(Captive::take(2).error().message(), HasSubstr("kernel thread"));
}

TEST(Refusals, TracedTaskIsNamedAndTheRestGoesOn) {
  Shared<std::atomic<pid_t>> traced;
  Shared<std::atomic<uint64_t>> counter;
  Specimen specimen([&] {
    if (const pid_t child = fork(); child != 0) {
      *traced = child;
      for (;;) ++*counter;
    }
    for (;;) pause();
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return *traced != 0 && *counter > 100; }));
  Specimen tracer([&] {
    ptrace(PTRACE_SEIZE, traced->load(), 0, 0);
    for (;;) pause();
    return 0;
  });
  ASSERT_TRUE(eventually([&] {
    const auto status = kernel::read_status(*traced);
    return status && status->tracer == tracer.pid();
  }));
  {
    auto captive = Captive::take(specimen.pid());
    ASSERT_OK(captive);
    ASSERT_TRUE((*captive)->context.diagnostics.refused());
    EXPECT_THAT((*captive)->context.diagnostics.all().front().text(),
                HasSubstr("is traced by task " + std::to_string(tracer.pid())));
  }
  const uint64_t before = *counter;
  EXPECT_TRUE(eventually([&] { return *counter > before + 1000; }));
}

TEST(Refusals, ForeignNamespace) {
  Shared<std::atomic<bool>> ready;
  Specimen specimen([&] {
    if (unshare(CLONE_NEWUTS) != 0) return 1;
    *ready = true;
    for (;;) pause();
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return ready->load() || specimen.state() == 'Z'; }));
  auto captive = Captive::take(specimen.pid());
  ASSERT_OK(captive);
  ASSERT_TRUE((*captive)->context.diagnostics.refused());
  EXPECT_THAT((*captive)->context.diagnostics.all().front().text(), HasSubstr("another UTS namespace"));
}

/// One of a hundred threads has something of its own. So many are not looked at one by one.
class OneOfManyThreads : public testing::TestWithParam<std::pair<int, const char*>> {};

TEST_P(OneOfManyThreads, IsFound) {
  const auto [flag, what] = GetParam();
  Shared<std::atomic<int>> started;
  Specimen specimen([&] {
    std::vector<std::thread> threads;
    for (int index = 0; index < 99; ++index) {
      threads.emplace_back([&, index] {
        if (index == 57 && flag != 0 && unshare(flag) != 0) _exit(1);
        ++*started;
        for (;;) pause();
      });
    }
    for (;;) pause();
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return *started == 99 || specimen.state() == 'Z'; }));
  auto captive = Captive::take(specimen.pid());
  ASSERT_OK(captive);
  const auto& context = (*captive)->context;
  const bool refused = std::string_view(what).starts_with("has ");
  ASSERT_EQ(context.diagnostics.refused(), refused);
  if (refused) {
    ASSERT_EQ(context.diagnostics.all().size(), 1u);
    EXPECT_THAT(context.diagnostics.all().front().text(), HasSubstr(what));
  }
  const auto& threads = context.application.tasks.at(0).threads;
  ASSERT_EQ(threads.size(), 100u);
  const auto elsewhere = [&](const model::Thread& thread) {
    return thread.childrens_namespace == model::empty_namespace;
  };
  EXPECT_EQ(std::ranges::count_if(threads, elsewhere), flag == CLONE_NEWPID ? 1 : 0);
  if (flag == CLONE_NEWPID) EXPECT_TRUE(elsewhere(threads[58]));
}

INSTANTIATE_TEST_SUITE_P(Capture, OneOfManyThreads,
                         testing::Values(std::pair(0, "nothing"),
                                         std::pair(CLONE_FILES, "has a descriptor table of its own"),
                                         std::pair(CLONE_FS, "has a working directory of its own"),
                                         std::pair(CLONE_NEWPID, "its children will live elsewhere")));

// ---- namespaces

TEST(Capture, InitOfAPidNamespace) {
  Shared<std::atomic<pid_t>> inner;
  Specimen specimen([&] {
    if (unshare(CLONE_NEWPID) != 0) return 1;
    const pid_t init = fork();
    if (init == 0) {
      setsid();
      if (fork() == 0) {
        for (;;) pause();
      }
      for (;;) pause();
    }
    *inner = init;
    waitpid(init, nullptr, 0);
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return *inner != 0 && kernel::list_children(*inner)->size() == 1; }));
  usleep(10'000);
  auto captive = Captive::take(*inner);
  ASSERT_OK(captive);
  const auto& application = (*captive)->context.application;
  EXPECT_FALSE((*captive)->context.diagnostics.refused()) << (*captive)->context.diagnostics.all().front().text();
  EXPECT_TRUE(application.root_is_namespace_init);
  EXPECT_EQ(application.root.value, 1);
  ASSERT_EQ(application.tasks.size(), 2u);
  EXPECT_EQ(application.tasks[1].pid.value, 2);
  EXPECT_EQ(application.tasks[1].parent.value, 1);
  EXPECT_EQ(application.tasks[1].session.value, 1);
  EXPECT_EQ((*captive)->who.seen.at(1).pid, 2);
  ASSERT_OK((*captive)->release(AfterDump::kill));
  specimen.expect_success();
}

// ---- trees in motion

bool is_called(pid_t pid, std::string_view name) {
  const auto stat = kernel::read_stat(pid);
  return stat && stat->comm == name;
}

void expect_only_what_was_executed(Captive& captive, pid_t pid, const std::string& name) {
  EXPECT_FALSE(captive.context.diagnostics.refused()) << captive.context.diagnostics.all().front().text();
  ASSERT_EQ(captive.context.application.tasks.size(), 1u);
  const auto& task = captive.context.application.tasks[0];
  EXPECT_EQ(task.name, name);
  EXPECT_EQ(task.threads.size(), 1u);
  ASSERT_EQ(captive.who.seen.size(), 1u);
  EXPECT_EQ(captive.who.seen[0].tid, pid);
  ASSERT_OK(captive.release(AfterDump::let_run));
  EXPECT_TRUE(eventually([&] {
    const auto stat = kernel::read_stat(pid);
    return stat && stat->state == 'S' && stat->num_threads == 1;
  }));
}

/// The first thread is seized when another, which is not yet, executes a program and takes its id.
TEST(Execve, OfAThreadThatIsNotSeizedYet) {
  Shared<std::atomic<pid_t>> inner;
  Shared<std::atomic<bool>> go;
  // Not a child of ours, for which we could wait without tracing it.
  Specimen specimen([&] {
    const pid_t pid = fork();
    if (pid != 0) {
      *inner = pid;
      for (;;) pause();
    }
    std::thread([&] {
      while (!*go) usleep(100);
      execl("/bin/sleep", "sleep", "1000", nullptr);
    }).detach();
    for (;;) pause();
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return *inner != 0 && kernel::count_threads(*inner) == 2u; }));
  auto captive = Captive::take(*inner, [&](std::string_view point) {
    if (point != "task-seized" || go->exchange(true)) return;
    EXPECT_TRUE(eventually([&] { return is_called(*inner, "sleep"); }));
  });
  ASSERT_OK(captive);
  expect_only_what_was_executed(**captive, *inner, "sleep");
}

/// Holds up whoever executes a file of its own until it is told to let them go on.
class Gate {
 public:
  explicit Gate(const std::string& name) : events_(fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC, O_RDONLY)) {
    std::string directory = testing::TempDir() + "/gate-XXXXXX";
    if (mkdtemp(directory.data()) == nullptr) return;
    path_ = directory + "/" + name;
    std::filesystem::copy_file("/bin/sleep", path_);
    usable_ = events_ >= 0 && fanotify_mark(events_, FAN_MARK_ADD, FAN_OPEN_EXEC_PERM, AT_FDCWD, path_.c_str()) == 0;
  }
  ~Gate() {
    if (events_ >= 0) close(events_);
    std::filesystem::remove_all(std::filesystem::path(path_).parent_path());
  }
  bool usable() const { return usable_; }
  const std::string& path() const { return path_; }
  void open_for_one() const {
    fanotify_event_metadata event{};
    if (read(events_, &event, sizeof event) != sizeof event) return;
    const fanotify_response response{event.fd, FAN_ALLOW};
    EXPECT_EQ(write(events_, &response, sizeof response), static_cast<ssize_t>(sizeof response));
    close(event.fd);
  }

 private:
  std::string path_;
  int events_;
  bool usable_ = false;
};

/// A thread is in execve when it is seized, and does not stop before all others have.
TEST(Execve, OfAThreadThatIsSeized) {
  Gate gate("slept");
  if (!gate.usable()) GTEST_SKIP() << "fanotify cannot be used here";
  for (const int others : {0, 1}) {  // before the thread and as many after it
    Shared<std::atomic<pid_t>> tid;
    Specimen specimen([&] {
      const auto idle = [] {
        for (;;) pause();
      };
      for (int index = 0; index < others; ++index) std::thread(idle).detach();
      std::thread([&] {
        *tid = gettid();
        while (kernel::count_threads(getpid()) != static_cast<size_t>(2 + 2 * others)) usleep(100);
        execl(gate.path().c_str(), "slept", "1000", nullptr);
      }).detach();
      while (*tid == 0) usleep(100);
      for (int index = 0; index < others; ++index) std::thread(idle).detach();
      idle();
      return 0;
    });
    const auto state_of = [&](pid_t thread) {
      const auto stat = kernel::read_thread_stat(specimen.pid(), thread);
      return stat ? stat->state : '-';
    };
    ASSERT_TRUE(eventually([&] { return *tid != 0 && state_of(*tid) == 'D'; }));
    std::thread helper([&] {
      const auto threads = kernel::list_threads(specimen.pid());
      EXPECT_TRUE(eventually([&] {
        return std::ranges::all_of(*threads, [&](pid_t thread) { return thread == *tid || state_of(thread) == 't'; });
      }));
      usleep(20'000);  // time for their stops to be taken
      gate.open_for_one();
    });
    auto captive = Captive::take(specimen.pid());
    helper.join();
    ASSERT_OK(captive);
    expect_only_what_was_executed(**captive, specimen.pid(), "slept");
  }
}

/// The parent stands still, and its children are known, when a process that nobody has found yet ends: its child
/// becomes one of the parent's. With many threads the kernel is asked in another way.
class Orphan : public testing::TestWithParam<int> {};

TEST_P(Orphan, OfAProcessThatWasNeverFoundIsFound) {
  struct Family {
    std::atomic<pid_t> child, orphan;
    std::atomic<int> threads;
    std::atomic<bool> end;
  };
  Shared<Family> family;
  Specimen specimen([&] {
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    const pid_t child = fork();
    if (child == 0) {
      signal(SIGCHLD, SIG_IGN);  // it need not run for its child to be reaped
      if (fork() == 0) {
        const pid_t orphan = fork();
        if (orphan != 0) family->orphan = orphan;
        while (orphan == 0 || !family->end) usleep(100);
        _exit(0);
      }
      for (;;) pause();
    }
    family->child = child;
    std::vector<std::thread> threads;
    while (static_cast<int>(threads.size()) < GetParam()) {
      threads.emplace_back([&] {
        ++family->threads;
        for (;;) pause();
      });
    }
    for (;;) pause();
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return family->child != 0 && family->orphan != 0 && family->threads == GetParam(); }));
  const auto parent_of_orphan = [&] {
    const auto stat = kernel::read_stat(family->orphan);
    return stat ? stat->ppid : 0;
  };
  auto captive = Captive::take(specimen.pid(), [&](std::string_view point) {
    const auto child = kernel::read_status(family->child);
    if (point != "task-seized" || family->end || !child || child->tracer == 0) return;
    family->end = true;
    EXPECT_TRUE(eventually([&] { return parent_of_orphan() == specimen.pid(); }));
  });
  ASSERT_OK(captive);
  ASSERT_TRUE(family->end);
  const auto& application = (*captive)->context.application;
  EXPECT_EQ(application.tasks.size(), 3u);
  const auto* orphan = application.find(Pid{family->orphan});
  ASSERT_NE(orphan, nullptr);
  EXPECT_EQ(orphan->parent.value, specimen.pid());
  EXPECT_EQ(orphan->parent_thread.value, 0);
  ASSERT_OK((*captive)->release(AfterDump::kill));
  EXPECT_TRUE(WIFSIGNALED(specimen.wait()));
}

INSTANTIATE_TEST_SUITE_P(OfThreads, Orphan, testing::Values(0, 1, 99));

TEST(Capture, VforkParentStopsWhenItsChildHasExecuted) {
  Shared<std::atomic<int>> rounds;
  Specimen specimen([&] {
    for (;;) {
      const pid_t child = vfork();
      if (child == 0) {
        usleep(3000);
        execl("/bin/true", "true", nullptr);
        _exit(1);
      }
      int status = 0;
      waitpid(child, &status, 0);
      if (status != 0) return 1;
      ++*rounds;
    }
    return 0;
  });
  ASSERT_TRUE(eventually([&] { return *rounds > 2; }));
  for (int round = 0; round < 10; ++round) {
    auto captive = Captive::take(specimen.pid());
    ASSERT_OK(captive);
    EXPECT_FALSE((*captive)->context.diagnostics.refused()) << (*captive)->context.diagnostics.all().front().text();
    const int before = *rounds;
    ASSERT_OK((*captive)->release(AfterDump::let_run));
    ASSERT_TRUE(eventually([&] { return *rounds > before + 1; }));
  }
}

TEST(Capture, TreeThatForksAndExitsAllTheTime) {
  struct Progress {
    std::atomic<int> rounds;
    std::atomic<int> stage;  // of the worker that failed
    std::atomic<int> reason;
  };
  Shared<Progress> progress;
  Specimen specimen([&] {
    const auto give_up = [&](int stage, int reason) {
      progress->reason = reason;
      progress->stage = stage;
      for (;;) pause();
    };
    for (int worker = 0; worker < 3; ++worker) {
      if (fork() != 0) continue;
      for (;;) {
        const pid_t child = fork();
        if (child < 0) give_up(1, errno);
        if (child == 0) {
          std::thread([] {}).join();
          _exit(3);
        }
        int status = 0;
        if (waitpid(child, &status, 0) != child) give_up(2, errno);
        if (status != 3 << 8) give_up(3, status);
        ++progress->rounds;
      }
    }
    int status = 0;
    wait(&status);
    return 1;
  });
  const auto happened = [&] {
    return "rounds " + std::to_string(progress->rounds) + ", failed at stage " + std::to_string(progress->stage) +
           " (1 fork, 2 waitpid, 3 status) for reason " + std::to_string(progress->reason) + ", root in state " +
           specimen.state();
  };
  ASSERT_TRUE(eventually([&] { return progress->rounds > 10; })) << happened();
  for (int round = 0; round < 20; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    auto captive = Captive::take(specimen.pid());
    ASSERT_OK(captive);
    const auto& context = (*captive)->context;
    EXPECT_FALSE(context.diagnostics.refused()) << context.diagnostics.all().front().text();
    EXPECT_GE(context.application.tasks.size(), 4u) << happened();
    const int before = progress->rounds;
    usleep(1000);
    EXPECT_EQ(progress->rounds, before);
    ASSERT_OK((*captive)->release(AfterDump::let_run));
    ASSERT_TRUE(eventually([&] { return progress->rounds > before + 3; })) << happened();
  }
}

}  // namespace
}  // namespace stasis::capture
