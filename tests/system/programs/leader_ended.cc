// A process whose first thread has ended while others go on, and a child of the same kind that is stopped: what the
// first thread leaves behind (its name, its exit status, its nice value), what belongs to the process (files, timers,
// pending signals, children), and who is whose child, are as they were.
// FAIL_RESTORE
// LAZY
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>

#include "probe.h"

namespace {

constexpr int leader_status = 7, leader_nice = 3, zombie_status = 9, worker_count = 3, signal_value = 42;
constexpr time_t far = 3600;
thread_local long local_value = 0;
volatile int started = 0;
int data = -1;

struct Board {
  volatile int ready;
};
Board* board;

/// /proc/self is named after the leader, dead or alive.
struct Leader {
  char name[32] = {}, state = '?';
  int nice = 0, exit_status = 0;
};
Leader leader() {
  char text[1024] = {};
  const int fd = open("/proc/self/stat", O_RDONLY);
  CHECK(fd >= 0 && read(fd, text, sizeof text - 1) > 0);
  close(fd);
  Leader found;
  char* end = strrchr(text, ')');
  CHECK(end != nullptr);
  *end = 0;
  snprintf(found.name, sizeof found.name, "%s", strchr(text, '(') + 1);
  int index = 3;
  for (const char* word = strtok(end + 1, " \n"); word != nullptr; word = strtok(nullptr, " \n"), ++index) {
    if (index == 3) found.state = word[0];
    if (index == 19) found.nice = atoi(word);
    if (index == 52) found.exit_status = atoi(word);
  }
  return found;
}

void check_leader(const char* name, int status, int nice) {
  const Leader now = leader();
  CHECK_EQUAL(now.state, 'Z');
  CHECK(strcmp(now.name, name) == 0);
  CHECK_EQUAL(now.exit_status, status << 8);
  CHECK_EQUAL(now.nice, nice);
}

/// The others exist until the end of the process.
void* idle(void* argument) {
  local_value = reinterpret_cast<long>(argument);
  const pid_t tid = gettid();
  __atomic_add_fetch(&started, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  CHECK_EQUAL(gettid(), tid);
  CHECK_EQUAL(local_value, reinterpret_cast<long>(argument));
  return nullptr;
}

// ---- the child

void* rest_of_child(void*) {
  probe::await_end_of_first_thread();
  const pid_t pid = getpid(), parent = getppid();
  const pid_t grandchild = fork();
  if (grandchild == 0) {
    __atomic_add_fetch(&board->ready, 1, __ATOMIC_RELEASE);
    probe::wait_for_go();
    CHECK_EQUAL(getppid(), pid);
    _exit(0);
  }
  __atomic_add_fetch(&board->ready, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  CHECK_EQUAL(getpid(), pid);
  CHECK_EQUAL(getppid(), parent);
  check_leader("child", 0, 0);
  probe::expect_child_passed(grandchild);
  _exit(0);
}

pid_t start_stopped_child() {
  const pid_t child = fork();
  if (child != 0) return child;
  prctl(PR_SET_NAME, "child");
  pthread_t other;
  CHECK(pthread_create(&other, nullptr, rest_of_child, nullptr) == 0);
  pthread_exit(nullptr);
}

// ---- the root

timer_t start_timer() {
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGUSR2;
  timer_t timer;
  CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
  const itimerspec when = {{0, 0}, {far, 0}};
  CHECK(timer_settime(timer, 0, &when, nullptr) == 0);
  return timer;
}

void check_signal() {
  sigset_t usr1;
  sigemptyset(&usr1);
  sigaddset(&usr1, SIGUSR1);
  siginfo_t info;
  const timespec at_once{};
  CHECK_EQUAL(sigtimedwait(&usr1, &info, &at_once), SIGUSR1);
  CHECK_EQUAL(info.si_value.sival_int, signal_value);
}

void check_timers(timer_t timer) {
  itimerval real;
  CHECK(getitimer(ITIMER_REAL, &real) == 0);
  CHECK(real.it_value.tv_sec > far / 2);
  itimerspec posix;
  CHECK(timer_gettime(timer, &posix) == 0);
  CHECK(posix.it_value.tv_sec > far / 2);
}

void* rest_of_root(void*) {
  probe::await_end_of_first_thread();
  const pid_t pid = getpid(), child = start_stopped_child(), zombie = fork();
  if (zombie == 0) _exit(zombie_status);
  siginfo_t info;
  CHECK(waitid(P_PID, zombie, &info, WEXITED | WNOWAIT) == 0);
  probe::await(&board->ready, 2);
  int status = 0;
  CHECK(kill(child, SIGSTOP) == 0 && waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status));
  const timer_t timer = start_timer();
  CHECK(sigqueue(pid, SIGUSR1, sigval{.sival_int = signal_value}) == 0);
  probe::await(&started, worker_count);
  probe::ready();
  probe::wait_for_go();
  CHECK_EQUAL(getpid(), pid);
  check_leader("first", leader_status, leader_nice);
  CHECK_EQUAL(getpriority(PRIO_PROCESS, static_cast<id_t>(gettid())), 0);
  CHECK_EQUAL(lseek(data, 0, SEEK_CUR), 5);
  check_timers(timer);
  check_signal();
  CHECK(kill(child, SIGCONT) == 0);
  probe::expect_child_passed(child);
  CHECK(waitpid(zombie, &status, 0) == zombie);
  CHECK_EQUAL(WEXITSTATUS(status), zombie_status);
  _exit(probe::passed());
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  board = probe::shared_memory<Board>();
  char path[4096];
  snprintf(path, sizeof path, "%s/data", probe::directory);
  data = open(path, O_CREAT | O_RDWR, 0644);
  CHECK(data >= 0 && write(data, "hello", 5) == 5);
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR1);
  sigprocmask(SIG_SETMASK, &blocked, nullptr);
  pthread_t thread;
  for (long i = 1; i <= worker_count; ++i)
    CHECK(pthread_create(&thread, nullptr, idle, reinterpret_cast<void*>(i)) == 0);
  CHECK(pthread_create(&thread, nullptr, rest_of_root, nullptr) == 0);
  const itimerval real = {{0, 0}, {far, 0}};
  CHECK(setitimer(ITIMER_REAL, &real, nullptr) == 0);
  CHECK(setpriority(PRIO_PROCESS, 0, leader_nice) == 0);
  CHECK(prctl(PR_SET_NAME, "first") == 0);
  syscall(SYS_exit, leader_status);
}
