// A session on a pseudo-terminal that the tree made: its leader, a job in the foreground, one in the background, one
// that has left the terminal, and one that has ended. Lines, the interrupt key and changes of the window go where they
// went before.
//
// FAIL_RESTORE
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

#include "probe.h"

namespace {

struct Board {
  volatile int set_up, interrupts, windows, resumed;
};
Board* board;

void open_terminal(const char* path) {
  CHECK(setsid() == getpid());
  const int slave = open(path, O_RDWR);  // acquires it
  CHECK(slave >= 0 && dup2(slave, 0) == 0 && dup2(slave, 1) == 1);
  if (slave > 1) close(slave);
  CHECK(tcgetsid(0) == getpid());
}

void set_up_done() { __atomic_add_fetch(&board->set_up, 1, __ATOMIC_ACQ_REL); }

/// Answers each line with the same in brackets.
[[noreturn]] void foreground_job(pid_t group) {
  signal(SIGINT, [](int) { board->interrupts = board->interrupts + 1; });
  signal(SIGWINCH, [](int) { board->windows = board->windows + 1; });
  CHECK_EQUAL(getpgrp(), group);
  while (tcgetpgrp(0) != group) usleep(1000);
  const int terminal = open("/dev/tty", O_RDWR);
  CHECK(terminal >= 0);
  set_up_done();
  for (;;) {
    char line[128];
    const ssize_t got = read(0, line, sizeof line - 1);
    if (got < 0) continue;
    if (got == 0) _exit(3);
    line[got - 1] = 0;
    char answer[160];
    const int length = snprintf(answer, sizeof answer, "[%s]\n", line);
    CHECK(write(terminal, answer, static_cast<size_t>(length)) == length);
  }
}

[[noreturn]] void wait_with_terminal(bool has_one) {
  CHECK(setpgid(0, 0) == 0);
  if (!has_one) CHECK(ioctl(0, TIOCNOTTY) == 0);
  set_up_done();
  probe::wait_for_go();
  const int terminal = open("/dev/tty", O_RDWR);
  CHECK((terminal >= 0) == has_one);
  if (has_one) CHECK(tcgetpgrp(terminal) != getpgrp());
  _exit(0);
}

[[noreturn]] void leader(const char* path) {
  open_terminal(path);
  signal(SIGTTOU, SIG_IGN);
  const pid_t background = fork();
  if (background == 0) wait_with_terminal(true);
  const pid_t without = fork();
  if (without == 0) wait_with_terminal(false);
  const pid_t job = fork();
  if (job == 0) {
    setpgid(0, 0);
    foreground_job(getpid());
  }
  CHECK(setpgid(job, job) == 0 || errno == EACCES);
  CHECK(tcsetpgrp(0, job) == 0);
  const pid_t ended = fork();
  if (ended == 0) _exit(7);
  siginfo_t info;
  CHECK(waitid(P_PID, static_cast<id_t>(ended), &info, WEXITED | WNOWAIT) == 0);
  set_up_done();
  probe::wait_for_go();
  probe::expect_child_passed(background);
  probe::expect_child_passed(without);
  int status = 0;
  CHECK(waitpid(ended, &status, 0) == ended && WIFEXITED(status) && WEXITSTATUS(status) == 7);
  CHECK(waitpid(job, &status, WUNTRACED) == job && WIFSTOPPED(status) && WSTOPSIG(status) == SIGTSTP);
  CHECK(tcsetpgrp(0, getpgrp()) == 0);  // as a shell does: take the terminal back, then continue the job
  CHECK(tcsetpgrp(0, job) == 0 && kill(-job, SIGCONT) == 0);
  board->resumed = 1;
  CHECK(waitpid(job, &status, 0) == job && WIFEXITED(status) && WEXITSTATUS(status) == 3);
  _exit(0);
}

void expect_text(int master, const char* text) {
  char seen[512] = {};
  for (size_t length = 0; strstr(seen, text) == nullptr;) {
    pollfd readable = {master, POLLIN, 0};
    if (poll(&readable, 1, 10'000) != 1) probe::failed("'%s' does not come, only '%s'", text, seen);
    const ssize_t got = read(master, seen + length, sizeof seen - 1 - length);
    if (got <= 0) probe::failed("'%s' does not come, only '%s': %s", text, seen, strerror(errno));
    length += static_cast<size_t>(got);
  }
}

void type(int master, const char* text) {
  CHECK(write(master, text, strlen(text)) == static_cast<ssize_t>(strlen(text)));
}

void await_count(const volatile int* count, int value) {
  for (int i = 0; i < 1000 && *count < value; ++i) usleep(10'000);
  CHECK_EQUAL(*count, value);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  board = probe::shared_memory<Board>();
  const int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  CHECK(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
  char path[64];
  CHECK(ptsname_r(master, path, sizeof path) == 0);
  termios modes = {};
  CHECK(tcgetattr(master, &modes) == 0);
  modes.c_lflag &= ~static_cast<tcflag_t>(ECHO);
  modes.c_cc[VINTR] = 'X' & 0x1f;
  CHECK(tcsetattr(master, TCSANOW, &modes) == 0);
  const winsize size = {33, 77, 330, 770};
  CHECK(ioctl(master, TIOCSWINSZ, &size) == 0);
  const pid_t child = fork();
  if (child == 0) {
    close(master);
    leader(path);
  }
  probe::await(&board->set_up, 4);
  const pid_t foreground = tcgetpgrp(master);
  CHECK(foreground != child && tcgetsid(master) == child);
  type(master, "before\n");
  expect_text(master, "[before]\r\n");
  probe::ready();
  probe::wait_for_go();

  char name[64];
  CHECK(ptsname_r(master, name, sizeof name) == 0);
  if (strcmp(name, path) != 0) probe::failed("its name was %s and is %s", path, name);
  CHECK_EQUAL(tcgetsid(master), child);
  CHECK_EQUAL(tcgetpgrp(master), foreground);
  CHECK_EQUAL(fcntl(master, F_GETFD), FD_CLOEXEC);
  termios found = {};
  CHECK(tcgetattr(master, &found) == 0 && memcmp(&found, &modes, sizeof modes) == 0);
  winsize window = {};
  CHECK(ioctl(master, TIOCGWINSZ, &window) == 0 && memcmp(&window, &size, sizeof size) == 0);
  CHECK_EQUAL(board->interrupts, 0);
  CHECK_EQUAL(board->windows, 0);

  type(master, "after\n");
  expect_text(master, "[after]\r\n");
  type(master, "\x18");
  await_count(&board->interrupts, 1);
  const winsize larger = {40, 100, 400, 1000};
  CHECK(ioctl(master, TIOCSWINSZ, &larger) == 0);
  await_count(&board->windows, 1);
  type(master, "\x1a");  // the stop key
  await_count(&board->resumed, 1);
  type(master, "resumed\n");
  expect_text(master, "[resumed]\r\n");
  type(master, "\x04");  // end of file
  probe::expect_child_passed(child);
  return probe::passed();
}
