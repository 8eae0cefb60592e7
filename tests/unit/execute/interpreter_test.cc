// The interpreter as it is compiled into stasis: what every operation does, and what a failure does to the others.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <filesystem>
#include <optional>
#include <thread>

#include "../eventually.h"
#include "agent_room.h"
#include "execute/shared_area.h"

namespace stasis::agent {
namespace {

using plan::call;
using plan::expecting;
using plan::InOut;
using plan::Out;
using plan::ResultOf;
using plan::WordOf;
using Expected = plan::Expectation::Kind;

constexpr int64_t canceled = -ECANCELED;

SlotProgram here() { return SlotProgram(EndMode::return_to_caller); }

TEST(Interpreter, RunsCallsInOrderAndKeepsTheirResults) {
  auto program = here();
  program.call(call(SYS_getpid), 0);
  program.call(call(SYS_gettid), 0);
  Room room({program});
  room.run(0);
  EXPECT_EQ(room.state(0), slot_done);
  EXPECT_EQ(room.result(0, 0), getpid());
  EXPECT_EQ(room.result(0, 1), gettid());
  EXPECT_EQ(room.slot(0).host_pid, getpid());
  EXPECT_EQ(room.slot(0).tid, gettid());
}

TEST(Interpreter, PassesAllSixArguments) {
  auto program = here();
  program.call(call(SYS_mmap, 0, 2 * page_size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 0);
  program.call(call(SYS_munmap, ResultOf{-1}, 2 * page_size), 0);
  Room room({program});
  room.run(0);
  EXPECT_EQ(room.header().failed, 0u);
  EXPECT_EQ(room.result(0, 1), 0);
}

/// A pseudo-terminal, and its index.
struct Terminal {
  UniqueFd master{posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)};
  uint32_t index() const { return index_of(master.get()); }
  static uint32_t index_of(int fd) {
    uint32_t found = ~0u;
    EXPECT_EQ(ioctl(fd, TIOCGPTN, &found), 0);
    return found;
  }
};

TEST(Interpreter, WaitsForATerminalThatAnotherHoldsForAMoment) {
  std::optional<Terminal> held(std::in_place);
  const uint32_t wanted = held->index();
  auto program = here();
  program.call(call(plan::Call::open_terminal, wanted, O_RDWR | O_NOCTTY | O_CLOEXEC, Out{4 + 4ull * wanted}), 0);
  Room room({program});
  std::jthread other([&] {
    usleep(20'000);
    held.reset();
  });
  room.run(0);
  ASSERT_EQ(room.state(0), slot_done);
  const UniqueFd master(static_cast<int>(room.result(0, 0)));
  EXPECT_EQ(Terminal::index_of(master.get()), wanted);
}

/// The first thread has created it, and passes it on with its end.
TEST(Interpreter, AwaitsAChildOfAnotherThread) {
  const pid_t process = fork();
  if (process == 0) {
    const pid_t child = fork();
    if (child == 0) pause();
    auto program = here();
    program.await_child(child, 0);
    Room room({program});
    std::thread([&] {
      room.run(0);
      const bool is_mine = waitid(P_PID, static_cast<id_t>(child), nullptr, WEXITED | WNOHANG | __WNOTHREAD) == 0;
      kill(child, SIGKILL);
      _exit(room.state(0) == slot_done && room.result(0, 0) == 0 && is_mine ? 0 : 1);
    }).detach();
    room.comes_to(0, slot_running);
    usleep(10'000);
    if (room.state(0) != slot_running) _exit(2);  // it was not its own yet
    syscall(SYS_exit, 0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(process, &status, 0), process);
  EXPECT_EQ(status, 0);
}

TEST(Interpreter, AwaitsNoChildWhenAnotherHasFailed) {
  auto program = here();
  program.await_child(getpid(), 0);  // which never is its own child
  Room room({program});
  room.header().failed = 1;
  room.run(0);
  EXPECT_EQ(room.state(0), slot_failed);
  EXPECT_EQ(room.result(0, 0), canceled);
}

/// Segments of System V and their ids: the lower bits are the place in the namespace's table (ipc/util.h,
/// IPCMNI_SHIFT).
class Segments : public testing::Test {
 protected:
  static constexpr int places = 1 << 15;
  static constexpr const char* next_id = "/proc/sys/kernel/shm_next_id";

  void SetUp() override {
    if (access(next_id, W_OK) != 0) GTEST_SKIP() << "ids of segments cannot be chosen here";
  }
  static int made_here() { return shmget(IPC_PRIVATE, page_size, 0600); }
  /// That no segment has, in places that are free.
  static std::vector<int> free_ids(size_t count) {
    std::vector<int> ids;
    for (size_t index = 0; index < count; ++index) ids.push_back(made_here());
    for (int& id : ids) shmctl(id, IPC_RMID, nullptr), id += places;
    return ids;
  }
  static int64_t run(plan::Call what) {
    auto program = here();
    program.call(plan::expecting(std::move(what), plan::Expectation::Kind::anything), 0);
    Room room({program});
    room.run(0);
    return room.result(0, 0);
  }
  static int64_t make(int id) {
    return run(call(plan::Call::make_segment, id, IPC_PRIVATE, page_size, 0600 | IPC_CREAT | IPC_EXCL,
                    plan::text(next_id), plan::text(std::to_string(id))));
  }
  static int64_t remove(int id) { return run(call(plan::Call::remove_segment, id)); }
  static bool exists(int id) {
    shmid_ds found{};
    return shmctl(id, IPC_STAT, &found) == 0;
  }
  static int count_of_ours() {
    shm_info info{};
    const int last = shmctl(0, SHM_INFO, reinterpret_cast<shmid_ds*>(&info));
    int count = 0;
    for (int index = 0; index <= last; ++index) {
      shmid_ds found{};
      count += shmctl(index, SHM_STAT, &found) >= 0 && found.shm_cpid == getpid();
    }
    return count;
  }
};

TEST_F(Segments, HaveTheirIdOrAreNotThere) {
  const int id = free_ids(1).front();
  EXPECT_EQ(make(id), id);
  EXPECT_EQ(make(id + places), -EBUSY);
  EXPECT_EQ(count_of_ours(), 1);
  EXPECT_EQ(remove(id), 0);
  EXPECT_FALSE(exists(id));
}

TEST_F(Segments, OfOthersAreNotRemoved) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const pid_t other = fork();
  if (other == 0) {
    const int id = made_here();
    _exit(write(ends[1], &id, sizeof id) == sizeof id ? 0 : 1);
  }
  int id = -1;
  ASSERT_EQ(read(ends[0], &id, sizeof id), static_cast<ssize_t>(sizeof id));
  ASSERT_EQ(waitpid(other, nullptr, 0), other);
  close(ends[0]), close(ends[1]);
  EXPECT_EQ(remove(id), 0);
  EXPECT_TRUE(exists(id));
  EXPECT_EQ(shmctl(id, IPC_RMID, nullptr), 0);
}

TEST_F(Segments, AreMadeByTwoAtATime) {
  constexpr int rounds = 300;
  const auto ids = free_ids(2);
  std::vector<pid_t> makers;
  for (const int first : ids) {
    makers.push_back(fork());
    if (makers.back() != 0) continue;
    for (int id = first; id < first + rounds * places; id += places) {
      if (make(id) != id || count_of_ours() != 1 || remove(id) != 0) _exit(1);
    }
    _exit(0);
  }
  for (const pid_t maker : makers) {
    int status = -1;
    EXPECT_EQ(waitpid(maker, &status, 0), maker);
    EXPECT_EQ(status, 0);
  }
}

TEST(Interpreter, HoldsADirectoryWhenOthersHaveLetItGo) {
  std::string directory = (std::filesystem::temp_directory_path() / "stasis-held-XXXXXX").string();
  ASSERT_NE(mkdtemp(directory.data()), nullptr);
  int other = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  ASSERT_EQ(flock(other, LOCK_EX), 0);
  auto program = here();
  program.call(call(plan::Call::hold_directory, plan::text(directory)), 0);
  Room room({program});
  std::thread holder([&] { room.run(0); });
  EXPECT_TRUE(room.comes_to(0, slot_running));
  usleep(10'000);
  EXPECT_EQ(room.state(0), slot_running);
  close(other);
  holder.join();
  EXPECT_EQ(room.header().failed, 0u);
  const auto held = static_cast<int>(room.result(0, 0));
  other = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  EXPECT_EQ(flock(other, LOCK_EX | LOCK_NB), -1);
  close(held);
  EXPECT_EQ(flock(other, LOCK_EX | LOCK_NB), 0);
  close(other);
  std::filesystem::remove(directory);
}

TEST(Interpreter, HandsOutputToLaterCalls) {
  auto program = here();
  program.call(call(SYS_pipe2, Out{8}, O_CLOEXEC), 0);
  program.call(call(SYS_write, WordOf{-1, 4}, plan::text("abc"), 3), 0);
  program.call(call(SYS_read, WordOf{-2, 0}, Out{3}, 3), 0);
  program.call(call(SYS_close, WordOf{-3, 0}), 0);
  program.call(call(SYS_close, WordOf{-4, 4}), 0);
  Room room({program});
  room.run(0);
  ASSERT_EQ(room.header().failed, 0u);
  EXPECT_THAT(room.outs(0, 2).at(0), testing::ElementsAre('a', 'b', 'c'));
}

TEST(Interpreter, UpdatesWhatIsBothInputAndOutput) {
  auto program = here();
  const pollfd nothing{-1, POLLIN, 7};  // revents of an ignored entry becomes 0
  program.call(call(SYS_poll, InOut{bytes_of(nothing)}, 1, 0), 0);
  Room room({program});
  room.run(0);
  const auto answer = room.outs(0, 0).at(0);
  EXPECT_EQ(answer.at(offsetof(pollfd, revents)), 0);
  EXPECT_EQ(answer.at(offsetof(pollfd, events)), POLLIN);
}

TEST(Interpreter, ResolvesPointersInsideStructures) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd reading(ends[0]), writing(ends[1]);
  const Bytes text{'d', 'e', 'e', 'p'};
  iovec vector{nullptr, text.size()};
  auto program = here();
  program.call(call(SYS_writev, writing.get(), plan::struct_pointing_to(vector, offsetof(iovec, iov_base), text), 1),
               0);
  Room room({program});
  room.run(0);
  char got[8]{};
  EXPECT_EQ(read(reading.get(), got, sizeof got), 4);
  EXPECT_STREQ(got, "deep");
}

struct Judged {
  Expected kind;
  int64_t value;
  bool good_descriptor;
  bool accepted;
};
class Expectations : public testing::TestWithParam<Judged> {};

TEST_P(Expectations, AreJudgedByTheirKind) {
  const auto& judged = GetParam();
  const UniqueFd file(open("/dev/null", O_RDONLY | O_CLOEXEC));
  auto program = here();
  program.call(expecting(call(SYS_fcntl, judged.good_descriptor ? file.get() : -1, F_GETFD), judged.kind, judged.value),
               0);
  Room room({program});
  room.run(0);
  EXPECT_EQ(room.state(0), judged.accepted ? slot_done : slot_failed);
}

INSTANTIATE_TEST_SUITE_P(
    All, Expectations,
    testing::Values(Judged{Expected::success, 0, true, true}, Judged{Expected::success, 0, false, false},
                    Judged{Expected::anything, 0, false, true}, Judged{Expected::exactly, FD_CLOEXEC, true, true},
                    Judged{Expected::exactly, 0, true, false}, Judged{Expected::exactly, -EBADF, false, true},
                    Judged{Expected::success_or, -EBADF, false, true},
                    Judged{Expected::success_or, -EINVAL, false, false},
                    Judged{Expected::success_or, -EINVAL, true, true}));

TEST(Interpreter, AnAddressIsNotAnError) {
  // Results up to -4096 are addresses in the upper half, not error numbers: nothing returns them here, so judge the
  // largest error number that there is.
  auto program = here();
  program.call(expecting(call(SYS_close, -1), Expected::exactly, -EBADF), 0);
  Room room({program});
  room.run(0);
  EXPECT_EQ(room.state(0), slot_done);
}

TEST(Interpreter, FailureStopsTheSlotAndSaysWhatFailed) {
  auto program = here();
  program.call(call(SYS_getpid), 3);
  program.call(call(SYS_close, -1), 4);
  program.call(call(SYS_getpid), 5);
  Room room({here(), program});
  room.run(1);
  EXPECT_EQ(room.state(1), slot_failed);
  EXPECT_EQ(room.header().failed, 2u);
  EXPECT_EQ(room.header().failed_instruction, 1u);
  EXPECT_EQ(room.header().failed_result, -EBADF);
  EXPECT_EQ(room.result(1, 2), 0) << "what follows a failure does not run";
}

TEST(Interpreter, OnlyTheFirstFailureIsReported) {
  auto first = here(), second = here();
  first.call(call(SYS_close, -1), 0);
  second.call(call(SYS_getpid), 0);
  second.call(call(SYS_kill, getpid(), 4711), 0);
  Room room({first, second});
  room.run(0);
  room.run(1);
  EXPECT_EQ(room.header().failed, 1u);
  EXPECT_EQ(room.header().failed_result, -EBADF);
  EXPECT_EQ(room.state(1), slot_failed);
}

TEST(Interpreter, WaitSleepsUntilTheCounterIsThere) {
  auto waiting = here(), posting = here();
  waiting.wait(1, 3, 0);
  for (int i = 0; i < 3; ++i) posting.post(1, 1, 0, 0);
  Room room({waiting, posting}, 2);
  std::thread other([&] { room.run(0); });
  EXPECT_TRUE(room.comes_to(0, slot_running));
  usleep(30'000);
  EXPECT_EQ(room.state(0), slot_running);
  room.run(1);
  other.join();
  EXPECT_EQ(room.state(0), slot_done);
  EXPECT_EQ(room.counter(1), 3u);
}

TEST(Interpreter, WaitsForWhatHasLongComeAtOnce) {
  auto posting = here(), waiting = here();
  posting.post(1, 5, 0, 0);
  waiting.wait(1, 4, 0);
  Room room({posting, waiting}, 2);
  room.run(0);
  room.run(1);
  EXPECT_EQ(room.state(1), slot_done);
}

TEST(Interpreter, AWaitingSlotGivesUpWhenAnotherFails) {
  auto waiting = here(), failing_one = here();
  waiting.wait(1, 1, 0);
  failing_one.call(call(SYS_close, -1), 0);
  Room room({waiting, failing_one}, 2);
  std::thread other([&] { room.run(0); });
  EXPECT_TRUE(room.comes_to(0, slot_running));
  room.run(1);
  other.join();
  EXPECT_EQ(room.state(0), slot_failed);
  EXPECT_EQ(room.result(0, 0), canceled);
  EXPECT_EQ(room.header().failed, 2u) << "the cause, not the one that was waiting for it";
}

TEST(Interpreter, ReadsFullyThroughShortReads) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd reading(ends[0]);
  UniqueFd writing(ends[1]);
  auto program = here();
  program.call(call(plan::Call::read_fully, reading.get(), Out{5}, 5, ~0ull), 0);
  Room room({program});
  std::thread writer([&] {
    for (const char letter : {'h', 'e', 'l', 'l', 'o'}) {
      EXPECT_EQ(write(writing.get(), &letter, 1), 1);
      usleep(2000);
    }
  });
  room.run(0);
  writer.join();
  EXPECT_EQ(room.result(0, 0), 5);
  EXPECT_THAT(room.outs(0, 0).at(0), testing::ElementsAre('h', 'e', 'l', 'l', 'o'));
}

class InAFile : public testing::Test {
 protected:
  InAFile() : file(memfd_create("test", MFD_CLOEXEC)) { EXPECT_EQ(write(file.get(), "0123456789", 10), 10); }
  UniqueFd file;
};

TEST_F(InAFile, ReadsFromAPositionWithoutMoving) {
  auto program = here();
  program.call(call(plan::Call::read_fully, file.get(), Out{4}, 4, 3), 0);
  Room room({program});
  room.run(0);
  EXPECT_THAT(room.outs(0, 0).at(0), testing::ElementsAre('3', '4', '5', '6'));
  EXPECT_EQ(lseek(file.get(), 0, SEEK_CUR), 10);
}

TEST_F(InAFile, AFileThatEndsEarlyIsAFailure) {
  auto program = here();
  program.call(call(plan::Call::read_fully, file.get(), Out{8}, 8, 5), 0);
  Room room({program});
  room.run(0);
  EXPECT_EQ(room.state(0), slot_failed);
  EXPECT_EQ(room.header().failed_result, -EIO);
}

TEST_F(InAFile, WritesAtAPosition) {
  auto program = here();
  program.call(call(plan::Call::write_fully, file.get(), plan::text("xy"), 2, 4), 0);
  Room room({program});
  room.run(0);
  char got[11]{};
  EXPECT_EQ(pread(file.get(), got, 10, 0), 10);
  EXPECT_STREQ(got, "0123xy6789");
}

TEST_F(InAFile, MovesADescriptorToItsNumber) {
  const int from = dup(file.get()), to = 700;
  auto program = here();
  program.call(call(plan::Call::move_fd, from, to, O_CLOEXEC), 0);
  Room room({program});
  room.run(0);
  const UniqueFd moved(to);
  EXPECT_EQ(room.header().failed, 0u);
  EXPECT_EQ(fcntl(from, F_GETFD), -1);
  EXPECT_EQ(fcntl(to, F_GETFD), FD_CLOEXEC);
}

TEST_F(InAFile, LeavesADescriptorThatHasItsNumber) {
  auto program = here();
  program.call(call(plan::Call::move_fd, file.get(), file.get(), 0), 0);
  Room room({program});
  room.run(0);
  EXPECT_EQ(room.header().failed, 0u);
  EXPECT_EQ(fcntl(file.get(), F_GETFD), 0);
}

TEST(Interpreter, OpensAtANumber) {
  constexpr int wanted = 700;
  auto program = here();
  program.call(call(plan::Call::open_at, plan::text("/dev/null"), O_WRONLY | O_CLOEXEC, 0, wanted), 0);
  Room room({program});
  room.run(0);
  const UniqueFd opened(wanted);
  EXPECT_EQ(room.header().failed, 0u);
  EXPECT_EQ(fcntl(wanted, F_GETFD), FD_CLOEXEC);
  EXPECT_EQ(fcntl(wanted, F_GETFL) & O_ACCMODE, O_WRONLY);
}

TEST(Interpreter, SaysWhyAFileCannotBeOpened) {
  auto program = here();
  program.call(call(plan::Call::open_at, plan::text("/nothing/there"), O_RDONLY, 0, 700), 0);
  Room room({program});
  room.run(0);
  EXPECT_EQ(room.header().failed_result, -ENOENT);
}

// ---- from here on the blob itself runs: children start at the area's first byte

SlotProgram creator(uint64_t flags = 0) {
  auto program = here();
  program.spawn(flags, SIGCHLD, {}, 1, 0);
  program.call(call(SYS_wait4, ResultOf{-1}, Out{4}, __WALL, 0), 0);
  return program;
}
int status_of(const Room& room) {
  const auto bytes = room.outs(0, 1).at(0);
  int status = 0;
  std::memcpy(&status, bytes.data(), sizeof status);
  return status;
}

TEST(Blob, RunsASlotInAChildThatIsBornInIt) {
  SlotProgram child(EndMode::exit_thread);
  child.call(call(SYS_getppid), 0);
  child.exit(0, 7, 0);
  Room room({creator(), child});
  room.run(0);
  ASSERT_EQ(room.header().failed, 0u);
  EXPECT_TRUE(WIFEXITED(status_of(room)));
  EXPECT_EQ(WEXITSTATUS(status_of(room)), 7);
  EXPECT_EQ(room.result(1, 0), getpid());
  EXPECT_EQ(room.slot(1).host_pid, static_cast<pid_t>(room.result(0, 0)));
}

TEST(Blob, EndsByASignalThatIsBlockedOrIgnored) {
  SlotProgram child(EndMode::exit_thread);
  const uint64_t all = ~0ull;
  const std::array<uint64_t, 4> ignore{1, 0, 0, 0};
  child.call(call(SYS_rt_sigprocmask, SIG_SETMASK, plan::struct_in(all), 0, 8), 0);
  child.call(call(SYS_rt_sigaction, SIGTERM, plan::struct_in(ignore), 0, 8), 0);
  child.exit(1, SIGTERM, 0);
  Room room({creator(), child});
  room.run(0);
  EXPECT_TRUE(WIFSIGNALED(status_of(room)));
  EXPECT_EQ(WTERMSIG(status_of(room)), SIGTERM);
}

TEST(Blob, RunsAfterEverythingElseIsUnmapped) {
  SlotProgram child(EndMode::exit_thread);
  Room* room = nullptr;
  const AddressRange where = Room::next_range();
  // The kernel writes to a registered rseq area when it preempts the child: without memory there that is its end.
  constexpr int unregister = 1, signature = 0x53053053;
  const auto rseq = reinterpret_cast<uint64_t>(__builtin_thread_pointer()) + static_cast<uint64_t>(__rseq_offset);
  child.call(plan::expecting(call(SYS_rseq, rseq, 32, unregister, signature), plan::Expectation::Kind::anything), 0);
  child.call(call(SYS_munmap, 0, where.begin), 0);
  child.call(call(SYS_munmap, where.end, 0x7ffffffff000 - where.end), 0);
  child.post(1, 1, 0, 0);
  child.exit(0, 9, 0);
  auto root = creator();
  root.wait(1, 1, 0);
  Room made({root, child}, 2, where);
  room = &made;
  room->run(0);
  EXPECT_EQ(WEXITSTATUS(status_of(*room)), 9);
  EXPECT_EQ(room->state(0), slot_done);
}

TEST(Blob, SpawnsThreadsWithStacksOfTheirOwn) {
  constexpr uint64_t thread = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
  constexpr uint32_t count = 20;
  SlotProgram leader(EndMode::exit_thread);
  std::vector<SlotProgram> programs{creator()};
  for (uint32_t i = 0; i < count; ++i) leader.spawn(thread, 0, {}, 2 + i, 0);
  leader.wait(1, count, 0);
  leader.exit(0, 3, 0);
  programs.push_back(leader);
  for (uint32_t i = 0; i < count; ++i) {
    SlotProgram one(EndMode::exit_thread);
    one.post(1, 1, 0, 0);
    programs.push_back(one);
  }
  Room room(std::move(programs), 2);
  room.run(0);
  ASSERT_EQ(room.header().failed, 0u);
  EXPECT_EQ(WEXITSTATUS(status_of(room)), 3);
  std::set<pid_t> tids;
  for (uint32_t i = 0; i < count; ++i) {
    EXPECT_EQ(room.slot(2 + i).host_pid, room.slot(1).host_pid);
    tids.insert(room.slot(2 + i).tid);
  }
  EXPECT_EQ(tids.size(), count);
}

TEST(Blob, WaitsAcrossProcesses) {
  SlotProgram child(EndMode::exit_thread);
  child.wait(1, 1, 0);
  child.post(2, 1, 0, 0);
  child.exit(0, 0, 0);
  auto root = here();
  root.spawn(0, SIGCHLD, {}, 1, 0);
  root.post(1, 1, 0, 0);
  root.wait(2, 1, 0);
  root.call(call(SYS_wait4, ResultOf{-3}, 0, __WALL, 0), 0);
  Room room({root, child}, 3);
  room.run(0);
  EXPECT_EQ(room.state(0), slot_done);
}

TEST(Blob, AFailureInAChildFreesWhoeverWaits) {
  SlotProgram child(EndMode::exit_thread);
  child.call(call(SYS_close, -1), 8);
  auto root = here();
  root.spawn(0, SIGCHLD, {}, 1, 0);
  root.wait(1, 1, 0);
  Room room({root, child}, 2);
  room.run(0);
  EXPECT_EQ(waitpid(static_cast<pid_t>(room.result(0, 0)), nullptr, __WALL), room.result(0, 0));
  EXPECT_EQ(room.result(0, 1), canceled);
  EXPECT_EQ(room.header().failed, 2u);
  EXPECT_EQ(room.header().failed_result, -EBADF);
}

TEST(Blob, ParksUntilItIsTakenOver) {
  SlotProgram child(EndMode::park);
  auto root = here();
  root.spawn(0, SIGCHLD, {}, 1, 0);
  root.wait(ready_counter, 1, 0);
  Room room({root, child});
  room.run(0);
  const auto pid = static_cast<pid_t>(room.result(0, 0));
  EXPECT_TRUE(room.comes_to(1, slot_done));
  usleep(50'000);
  EXPECT_EQ(waitpid(pid, nullptr, WNOHANG | __WALL), 0) << "still there";
  EXPECT_EQ(room.counter(ready_counter), 1u) << "ready once";
  kill(pid, SIGKILL);
  EXPECT_EQ(waitpid(pid, nullptr, __WALL), pid);
}

/// Stasis stops threads as soon as they are done, wherever they are then: step by step.
TEST(Interpreter, WhoIsDoneHasBeenCounted) {
  for (const auto mode : {EndMode::park, EndMode::park_spinning}) {
    Room room({SlotProgram(mode)});
    const pid_t pid = fork();
    if (pid == 0) {
      ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
      raise(SIGSTOP);
      room.run(0);
    }
    ASSERT_EQ(waitpid(pid, nullptr, 0), pid);
    int steps = 0;
    for (; room.state(0) != slot_done && steps < 100'000; ++steps) {
      int status = 0;
      ASSERT_EQ(ptrace(PTRACE_SINGLESTEP, pid, nullptr, nullptr), 0);
      ASSERT_EQ(waitpid(pid, &status, 0), pid);
      ASSERT_TRUE(WIFSTOPPED(status));
    }
    EXPECT_EQ(room.state(0), slot_done) << "after " << steps << " steps";
    EXPECT_EQ(room.counter(ready_counter), 1u);
    kill(pid, SIGKILL);
    EXPECT_EQ(waitpid(pid, nullptr, 0), pid);
  }
}

/// Processes that run slots of an area whose supervisor is a process of its own.
class Abandoned : public Room {
 public:
  explicit Abandoned(SlotProgram program) : Room({std::move(program)}, 2) {
    supervisor_ = fork();
    if (supervisor_ == 0) {
      const auto held = execute::Supervision::begin(header());
      if (held) __atomic_store_n(&is_held(), 1, __ATOMIC_RELEASE);
      for (;;) pause();
    }
    EXPECT_TRUE(eventually([this] { return __atomic_load_n(&is_held(), __ATOMIC_ACQUIRE) != 0; }));
  }
  ~Abandoned() {
    if (runner_ > 0) kill(runner_, SIGKILL), waitpid(runner_, nullptr, 0);
    if (supervisor_ > 0) kill_supervisor();
  }
  void kill_supervisor() {
    kill(supervisor_, SIGKILL);
    waitpid(supervisor_, nullptr, 0);
    supervisor_ = 0;
  }
  void begin() {
    runner_ = fork();
    if (runner_ != 0) return;
    const rlimit no_core{0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    run(0);
    _exit(0);
  }
  /// The status with which the runner ends; nothing: it does not.
  std::optional<int> end() {
    int status = 0;
    if (!eventually([&] { return waitpid(runner_, &status, WNOHANG) == runner_; }, std::chrono::seconds(10)))
      return std::nullopt;
    runner_ = 0;
    return status;
  }

 private:
  uint32_t& is_held() { return reinterpret_cast<uint32_t*>(base() + header().counters)[1]; }
  pid_t supervisor_ = 0, runner_ = 0;
};

constexpr int vanished = 1 << 8;

TEST(Interpreter, WhoBeginsWhenTheSupervisorIsDeadDoesNothing) {
  auto program = here();
  program.call(call(SYS_getpid), 0);
  Abandoned room(program);
  room.kill_supervisor();
  room.begin();
  EXPECT_EQ(room.end(), vanished);
  EXPECT_EQ(room.result(0, 0), 0);
}

TEST(Interpreter, WhoWaitsEndsWithTheSupervisor) {
  auto waiting = here(), awaiting = here();
  waiting.wait(0, 1, 0);
  awaiting.await_child(getpid(), 0);
  for (const auto& program : {waiting, awaiting}) {
    Abandoned room(program);
    room.begin();
    EXPECT_TRUE(room.comes_to(0, slot_running));
    usleep(30'000);
    EXPECT_EQ(room.state(0), slot_running);
    room.kill_supervisor();
    EXPECT_EQ(room.end(), vanished);
  }
}

TEST(Interpreter, WhoIsParkedEndsWithTheSupervisor) {
  for (const auto mode : {EndMode::park, EndMode::park_spinning}) {
    Abandoned room{SlotProgram(mode)};
    room.begin();
    EXPECT_TRUE(room.comes_to(0, slot_done));
    room.kill_supervisor();
    EXPECT_EQ(room.end(), vanished);
  }
}

TEST(Interpreter, AFilterThatForbidsEverythingKeepsNobody) {
  SlotProgram program(EndMode::park_spinning);
  const sock_filter refuse = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
  const uint64_t all = ~0ull;
  const auto filter =
      plan::struct_pointing_to(sock_fprog{.len = 1, .filter = nullptr}, offsetof(sock_fprog, filter), bytes_of(refuse));
  program.call(call(SYS_rt_sigprocmask, SIG_SETMASK, plan::struct_in(all), 0, 8), 0);
  program.call(call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  program.call(call(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter), 0);
  Abandoned room(program);
  room.begin();
  EXPECT_TRUE(room.comes_to(0, slot_done));
  room.kill_supervisor();
  EXPECT_EQ(room.end(), SIGILL);
}

TEST(Blob, LeavesTheExtendedStateAlone) {
  // mxcsr stands for it: nothing in the blob may use vector registers, so a rounding mode set before is there after.
  uint32_t before = 0x7f80, after = 0, usual = 0;
  SlotProgram program = here();
  for (int i = 0; i < 50; ++i) program.call(call(SYS_getpid), 0);
  Room room({program});
  asm volatile("stmxcsr %0" : "=m"(usual));
  asm volatile("ldmxcsr %0" ::"m"(before));
  room.run(0);
  asm volatile("stmxcsr %0" : "=m"(after));
  asm volatile("ldmxcsr %0" ::"m"(usual));
  EXPECT_EQ(after, before);
}

}  // namespace
}  // namespace stasis::agent
