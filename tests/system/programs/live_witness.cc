// What a program that is left running can notice of a snapshot beside the pause: children that are not its own, signals
// of their ends, pipes that somebody else keeps open. It looks all the time.
#include <dirent.h>

#include <string>

#include "probe.h"

namespace {

volatile sig_atomic_t child_signals = 0;

void count(int) { child_signals = child_signals + 1; }

void expect_no_child() {
  int status = 0;
  CHECK(waitpid(-1, &status, WNOHANG) == -1 && errno == ECHILD);
  CHECK(waitpid(-1, &status, WNOHANG | __WALL) == -1 && errno == ECHILD);
  siginfo_t info = {};
  CHECK(waitid(P_ALL, 0, &info, WEXITED | WSTOPPED | WNOHANG | WNOWAIT) == -1 && errno == ECHILD);
}

int open_descriptors() {
  DIR* directory = opendir("/proc/self/fd");
  CHECK(directory != nullptr);
  int count = 0;
  while (readdir(directory) != nullptr) ++count;
  closedir(directory);
  return count;
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  CHECK(signal(SIGCHLD, count) != SIG_ERR);
  int kept[2];
  CHECK(pipe2(kept, O_NONBLOCK) == 0);
  const pid_t pid = getpid();
  constexpr size_t size = 32 << 20;
  auto* memory = static_cast<char*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  CHECK(memory != MAP_FAILED);
  memset(memory, 7, size);
  const int descriptors = open_descriptors();
  probe::ready();
  char close_now[4096];
  snprintf(close_now, sizeof close_now, "%s/close-now", probe::directory);
  bool closed = false;
  char byte;
  while (!probe::go_has_come()) {
    expect_no_child();
    CHECK_EQUAL(getpid(), pid);
    if (!closed) CHECK(read(kept[0], &byte, 1) == -1 && errno == EAGAIN);
    if (closed || access(close_now, F_OK) != 0) continue;
    // tests/system/live says so in the middle of a snapshot: who had taken this end along would keep the reader
    // waiting.
    close(kept[1]);
    CHECK(read(kept[0], &byte, 1) == 0);
    closed = true;
    CHECK(rename(close_now, (std::string(close_now) + "-done").c_str()) == 0);
  }
  CHECK_EQUAL(child_signals, 0);
  CHECK_EQUAL(open_descriptors(), descriptors - (closed ? 1 : 0));
  for (size_t i = 0; i < size; ++i) CHECK_EQUAL(memory[i], 7);
  return probe::passed();
}
