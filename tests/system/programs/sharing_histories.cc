// Descriptor tables and working directories that are common to some because a random history of clone, unshare, setsid
// and exit has made it so (tests/property/resource/carried_test.cc plans thousands of such). SHARING_SEED chooses
// others.
#include <sched.h>
#include <sys/prctl.h>

#include <random>
#include <vector>

#include "probe.h"

namespace {

constexpr int histories = 4, operations = 50, most_processes = 2 * operations, first_fd = 300;

enum class Kind { create, create_sibling, unshare_files, unshare_fs, lead, end, reap };
struct Operation {
  Kind kind;
  int actor, other;
  unsigned long flags;
};
/// Who has what after all operations, by index. The first is the root of the history, and a subreaper.
struct Process {
  int parent, files, fs;
  bool lives, leads;
};

class History {
 public:
  explicit History(unsigned seed) : random_(seed) {
    processes.push_back({-1, 0, 0, true, false});
    for (int i = 0; i < operations; ++i) operate();
  }
  std::vector<Process> processes;
  std::vector<Operation> done;

 private:
  int below(size_t limit) { return static_cast<int>(random_() % limit); }
  void operate() {
    int actor = below(processes.size());
    while (!processes[actor].lives) actor = below(processes.size());
    auto& process = processes[actor];
    switch (below(8)) {
      case 0:
      case 1:
      case 2:
        return create(actor);
      case 3:
        process.files = ++objects_;
        return done.push_back({Kind::unshare_files, actor, 0, 0});
      case 4:
        process.fs = ++objects_;
        return done.push_back({Kind::unshare_fs, actor, 0, 0});
      case 5:
        if (actor == 0 || process.leads) return;
        process.leads = true;
        return done.push_back({Kind::lead, actor, 0, 0});
      default:
        if (actor != 0 && below(2) == 0) end(actor);
    }
  }
  void create(int actor) {
    const Process by = processes[actor];
    const bool sibling = actor != 0 && below(6) == 0;
    unsigned long flags = sibling ? CLONE_PARENT | SIGCHLD : SIGCHLD;
    Process child{sibling ? by.parent : actor, ++objects_, ++objects_, true, false};
    if (below(3) != 0) flags |= CLONE_FILES, child.files = by.files;
    if (below(3) != 0) flags |= CLONE_FS, child.fs = by.fs;
    done.push_back({sibling ? Kind::create_sibling : Kind::create, actor, static_cast<int>(processes.size()), flags});
    processes.push_back(child);
  }
  void end(int actor) {
    processes[actor].lives = false;
    for (auto& process : processes) {
      if (process.parent == actor) process.parent = 0;
    }
    done.push_back({Kind::end, actor, 0, 0});
    done.push_back({Kind::reap, processes[actor].parent, actor, 0});
  }

  std::mt19937 random_;
  int objects_ = 0;
};

/// Steps are taken one after the other, each by whose turn it is.
struct Board {
  volatile int step;
  volatile pid_t pids[most_processes];
};

/// Where one has failed no other waits for ever.
void await_step(const Board* board, int step) {
  constexpr int patience = 300'000;  // of 200 µs: a minute
  for (int i = 0; __atomic_load_n(&board->step, __ATOMIC_ACQUIRE) != step; ++i) {
    CHECK(i < patience);
    usleep(200);
  }
}
void pass_on(Board* board) { __atomic_add_fetch(&board->step, 1, __ATOMIC_RELEASE); }

class Player {
 public:
  Player(const History& history, Board* board, volatile int* settled, const volatile int* released)
      : history_(history), board_(board), settled_(settled), released_(released) {}

  /// Ends the process.
  [[noreturn]] void play(int self, size_t from) {
    self_ = self;
    for (size_t step = from; step < history_.done.size(); ++step) {
      const auto& operation = history_.done[step];
      if (operation.actor != self_) continue;
      await_step(board_, static_cast<int>(step));
      operate(operation, step);
      pass_on(board_);
    }
    // Nobody who creates others is there any more.
    if (self_ == 0) {
      await_step(board_, static_cast<int>(history_.done.size()));
      __atomic_add_fetch(settled_, 1, __ATOMIC_SEQ_CST);
    }
    while (*released_ == 0) usleep(1000);
    compare();
    int status = 0;
    while (waitpid(-1, &status, __WALL) > 0) CHECK(status == 0);
    _exit(0);
  }

 private:
  void operate(const Operation& operation, size_t step) {
    switch (operation.kind) {
      case Kind::create:
      case Kind::create_sibling: {
        const long pid = syscall(SYS_clone, operation.flags, nullptr, nullptr, nullptr, nullptr);
        CHECK(pid >= 0);
        if (pid == 0) play(operation.other, step + 1);
        board_->pids[operation.other] = static_cast<pid_t>(pid);
        return;
      }
      case Kind::unshare_files:
        CHECK(unshare(CLONE_FILES) == 0);
        return;
      case Kind::unshare_fs:
        CHECK(unshare(CLONE_FS) == 0);
        return;
      case Kind::lead:
        CHECK(setsid() == getpid());
        return;
      case Kind::end:
        pass_on(board_);
        _exit(0);
      case Kind::reap:
        CHECK(waitpid(board_->pids[operation.other], nullptr, __WALL) == board_->pids[operation.other]);
        return;
    }
  }

  /// One after the other changes what it has, and each of the others looks whether it has that, too.
  void compare() {
    int step = static_cast<int>(history_.done.size());
    const auto& own = history_.processes[self_];
    for (size_t changer = 0; changer < history_.processes.size(); ++changer) {
      const auto& other = history_.processes[changer];
      if (!other.lives) continue;
      const int fd = first_fd + static_cast<int>(changer);
      const mode_t mask = static_cast<mode_t>(changer) + 1;
      take_turn(static_cast<int>(changer), step++, [&] {
        CHECK(dup2(open("/dev/null", O_RDONLY), fd) == fd);
        umask(mask);
      });
      for (size_t observer = 0; observer < history_.processes.size(); ++observer) {
        if (!history_.processes[observer].lives) continue;
        take_turn(static_cast<int>(observer), step++, [&] {
          CHECK_EQUAL(fcntl(fd, F_GETFD) >= 0, own.files == other.files);
          const mode_t now = umask(0);
          umask(now);
          CHECK_EQUAL(now == mask, own.fs == other.fs);
        });
      }
    }
  }
  template <typename Action>
  void take_turn(int whose, int step, Action action) {
    if (whose != self_) return;
    await_step(board_, step);
    action();
    pass_on(board_);
  }

  const History& history_;
  Board* board_;
  volatile int* settled_;
  const volatile int* released_;
  int self_ = 0;
};

struct Common {
  volatile int settled, released;
  Board boards[histories];
};

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  auto* common = probe::shared_memory<Common>();
  const char* chosen = getenv("SHARING_SEED");
  const unsigned seed = chosen == nullptr ? 1 : static_cast<unsigned>(atoi(chosen));
  pid_t roots[histories];
  for (int i = 0; i < histories; ++i) {
    const History history(histories * seed + static_cast<unsigned>(i));
    roots[i] = probe::start([&] {
      CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
      umask(0777);  // none of those that tell who shares what
      Player(history, &common->boards[i], &common->settled, &common->released).play(0, 0);
    });
  }
  probe::await(&common->settled, histories);
  probe::ready();
  probe::wait_for_go();
  common->released = 1;
  for (const pid_t root : roots) probe::expect_child_passed(root);
  return probe::passed();
}
