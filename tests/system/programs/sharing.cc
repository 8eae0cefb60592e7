// Descriptor tables, fs contexts, handlers and address spaces shared between processes by clone flags.
// LAZY
#include <sched.h>

#include "probe.h"

namespace {

struct Board {
  volatile int started, step;
  volatile int fd;
};
Board* board;
volatile int in_shared_memory = 0;
char stacks[3][64 << 10];

void wait_for_step(int step) {
  while (board->step < step) usleep(1000);
}

void handler(int) {}

/// A memory file that nobody has open any more, in memory that is not shared.
volatile char* map_memory_file() {
  const int fd = memfd_create("mapped", 0);
  CHECK(fd >= 0 && ftruncate(fd, 4096) == 0);
  void* memory = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(memory != MAP_FAILED && close(fd) == 0);
  return static_cast<char*>(memory);
}

/// CLONE_FILES and CLONE_FS: a descriptor and a directory opened by one are the other's.
int shares_files(void*) {
  volatile char* mapped = map_memory_file();
  mapped[1] = 'm';
  __atomic_add_fetch(&board->started, 1, __ATOMIC_SEQ_CST);
  wait_for_step(1);
  char byte = 0;
  CHECK(pread(board->fd, &byte, 1, 0) == 1 && byte == 'x');
  char here[4096];
  CHECK(getcwd(here, sizeof here) != nullptr && strcmp(here, "/usr") == 0);
  CHECK(umask(077) == 0123);
  CHECK_EQUAL(mapped[1], 'm');
  return 0;
}

/// CLONE_VM: it sees what the other writes. CLONE_SIGHAND: it sees handlers.
int shares_memory(void*) {
  __atomic_add_fetch(&board->started, 1, __ATOMIC_SEQ_CST);
  wait_for_step(2);
  CHECK_EQUAL(in_shared_memory, 99);
  struct sigaction action;
  CHECK(sigaction(SIGUSR2, nullptr, &action) == 0 && action.sa_handler == handler);
  in_shared_memory = 100;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  board = probe::shared_memory<Board>();
  umask(0123);
  const pid_t files = clone(shares_files, stacks[0] + sizeof stacks[0], CLONE_FILES | CLONE_FS | SIGCHLD, nullptr);
  const pid_t memory = clone(shares_memory, stacks[1] + sizeof stacks[1], CLONE_VM | CLONE_SIGHAND | SIGCHLD, nullptr);
  CHECK(files > 0 && memory > 0);
  while (board->started < 2) usleep(1000);
  probe::ready();
  probe::wait_for_go();

  char path[4096];
  snprintf(path, sizeof path, "%s/shared", probe::directory);
  board->fd = open(path, O_CREAT | O_RDWR, 0600);
  CHECK(board->fd >= 0 && write(board->fd, "x", 1) == 1);
  CHECK(chdir("/usr") == 0);
  board->step = 1;
  probe::expect_child_passed(files);
  CHECK_EQUAL(umask(0), 077);
  signal(SIGUSR2, handler);
  in_shared_memory = 99;
  board->step = 2;
  probe::expect_child_passed(memory);
  CHECK_EQUAL(in_shared_memory, 100);
  return probe::passed();
}
