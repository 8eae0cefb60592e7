// A tree with one of each kind that a killed restore could leave behind: threads, a process with much memory, one that
// is no longer its creator's child, a zombie, and one whose filter lets nothing through that stasis would need.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>

#include "../system/programs/probe.h"

namespace {

constexpr int threads = 8;
constexpr size_t large = 192 << 20;

struct Board {
  volatile int ready;
  volatile pid_t orphan;
};
Board* board;

void be_ready() { __atomic_add_fetch(&board->ready, 1, __ATOMIC_RELEASE); }

void live() {
  be_ready();
  probe::wait_for_go();
}

void have_much_memory() {
  auto* memory =
      static_cast<uint64_t*>(mmap(nullptr, large, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  CHECK(memory != MAP_FAILED);
  constexpr size_t step = 4096 / sizeof *memory;
  for (size_t i = 0; i < large / sizeof *memory; i += step) memory[i] = i + 1;
  live();
  for (size_t i = 0; i < large / sizeof *memory; i += step) CHECK(memory[i] == i + 1);
}

/// Nothing but what probe::wait_for_go and an end need: a futex is not among it.
void be_filtered() {
  constexpr int allowed[] = {SYS_access, SYS_clock_nanosleep, SYS_exit_group, SYS_restart_syscall};
  sock_filter code[2 * (sizeof allowed / sizeof *allowed) + 2];
  unsigned short length = 0;
  code[length++] = BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr));
  for (const int number : allowed) {
    code[length++] = BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(number), 0, 1);
    code[length++] = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  }
  code[length++] = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
  const sock_fprog filter{length, code};
  CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
  live();
}

/// Its parent ends: it comes to the root.
void beget_orphan() {
  const pid_t mother = getpid();
  if (fork() != 0) _exit(0);
  board->orphan = getpid();
  while (getppid() == mother) usleep(1000);
  live();
  _exit(0);
}

void* thread(void*) {
  live();
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  board = probe::shared_memory<Board>();
  CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
  pthread_t others[threads];
  for (auto& other : others) CHECK(pthread_create(&other, nullptr, thread, nullptr) == 0);
  const pid_t mother = probe::start(beget_orphan);
  CHECK(waitpid(mother, nullptr, 0) == mother);
  const pid_t rich = probe::start(have_much_memory), filtered = probe::start(be_filtered);
  const pid_t zombie = probe::start([] {});
  siginfo_t gone;
  CHECK(waitid(P_PID, static_cast<id_t>(zombie), &gone, WEXITED | WNOWAIT) == 0);
  probe::await(&board->ready, threads + 3);
  probe::ready();
  probe::wait_for_go();
  for (auto& other : others) CHECK(pthread_join(other, nullptr) == 0);
  const pid_t children[] = {rich, filtered, zombie, board->orphan};
  for (const pid_t child : children) probe::expect_child_passed(child);
  return probe::passed();
}
