// A stopped child stays stopped, and goes on when told to.
#include "probe.h"

namespace {

char state_of(pid_t pid) {
  char path[64], text[512] = {};
  snprintf(path, sizeof path, "/proc/self/root/proc/%d/stat", pid);
  const int fd = open(path, O_RDONLY);
  if (fd < 0) return '?';
  CHECK(read(fd, text, sizeof text - 1) > 0);
  close(fd);
  return *(strrchr(text, ')') + 2);
}

struct Board {
  volatile long count;
};

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  auto* board = probe::shared_memory<Board>();
  const pid_t child = fork();
  if (child == 0) {
    for (;;) {
      board->count = board->count + 1;
      if (probe::go_has_come() && access("/proc/self", F_OK) == 0) usleep(1000);
      usleep(500);
    }
  }
  usleep(20'000);
  CHECK(kill(child, SIGSTOP) == 0);
  int status = 0;
  CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status));
  CHECK_EQUAL(WSTOPSIG(status), SIGSTOP);
  probe::ready();
  probe::wait_for_go();
  const long before = board->count;
  usleep(100'000);
  CHECK_EQUAL(board->count, before);
  if (getpid() != 1) CHECK(state_of(child) == 'T');  // the driver's /proc does not know the namespace's pids
  CHECK(kill(child, SIGCONT) == 0);
  for (int i = 0; i < 500 && board->count < before + 5; ++i) usleep(10'000);
  CHECK(board->count >= before + 5);
  CHECK(kill(child, SIGKILL) == 0);
  do {
    CHECK(waitpid(child, &status, 0) == child);
  } while (!WIFSIGNALED(status));
  return probe::passed();
}
