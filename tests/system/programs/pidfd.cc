// pidfds: of oneself, a child, a zombie, the parent, threads, and processes that have ended, one of them by a signal.
// FAIL_RESTORE
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>

#include "probe.h"

static int pidfd_open(pid_t pid, unsigned flags) { return static_cast<int>(syscall(SYS_pidfd_open, pid, flags)); }
static int pidfd_send_signal(int pidfd, int signal, siginfo_t* info, unsigned flags) {
  return static_cast<int>(syscall(SYS_pidfd_send_signal, pidfd, signal, info, flags));
}

static bool is_over(int pidfd) {
  pollfd asked = {pidfd, POLLIN, 0};
  return poll(&asked, 1, 0) == 1;
}

static int end_of(int pidfd) {
  struct {
    uint64_t mask, cgroup;
    uint32_t ids[11];
    int32_t exit_code;
  } info = {};
  info.mask = 1 << 3;  // PIDFD_INFO_EXIT
  CHECK(ioctl(pidfd, _IOWR(0xFF, 11, info), &info) == 0);
  CHECK(info.mask & 1 << 3);
  return info.exit_code;
}

static int open_ended(int status, int signal) {
  const pid_t pid = fork();
  if (pid == 0) {
    if (signal != 0) kill(getpid(), signal);
    _exit(status);
  }
  const int pidfd = pidfd_open(pid, 0);
  CHECK(pidfd >= 0 && waitpid(pid, nullptr, 0) == pid);
  return pidfd;
}

/// Tells its number, and goes on until somebody sends it a signal.
static void* live(void* number) {
  sigset_t usr2;
  sigemptyset(&usr2);
  sigaddset(&usr2, SIGUSR2);
  __atomic_store_n(static_cast<int*>(number), static_cast<int>(syscall(SYS_gettid)), __ATOMIC_RELEASE);
  int signal = 0;
  CHECK(sigwait(&usr2, &signal) == 0);
  return nullptr;
}

static uint64_t inode(int fd) {
  struct stat found;
  CHECK(fstat(fd, &found) == 0);
  return found.st_ino;
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  auto* opened = probe::shared_memory<int>();
  const int self = pidfd_open(getpid(), 0);
  const pid_t child = fork();
  if (child == 0) {
    const int above = pidfd_open(getppid(), O_NONBLOCK);
    CHECK(above >= 0);
    __atomic_store_n(opened, 1, __ATOMIC_RELEASE);
    probe::wait_for_go();
    CHECK(!is_over(above));
    CHECK_EQUAL(fcntl(above, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    CHECK(pidfd_send_signal(above, SIGUSR1, nullptr, 0) == 0);
    pause();
    _exit(1);
  }
  const pid_t dead = fork();
  if (dead == 0) _exit(9);
  siginfo_t info;
  CHECK(waitid(P_PID, static_cast<id_t>(dead), &info, WEXITED | WNOWAIT) == 0);
  const int of_child = pidfd_open(child, 0), of_dead = pidfd_open(dead, 0), twin = pidfd_open(child, 0);
  const int exited = open_ended(42, 0), killed = open_ended(0, SIGTERM);
  CHECK(self >= 0 && of_child >= 0 && of_dead >= 0 && twin >= 0);
  const int killed_again = dup(killed);
  sigset_t usr1;
  sigemptyset(&usr1);
  sigaddset(&usr1, SIGUSR1);
  sigaddset(&usr1, SIGUSR2);
  sigprocmask(SIG_BLOCK, &usr1, nullptr);
  int number = 0;
  pthread_t thread;
  CHECK(pthread_create(&thread, nullptr, live, &number) == 0);
  while (__atomic_load_n(&number, __ATOMIC_ACQUIRE) == 0) usleep(100);
  constexpr unsigned of_thread = O_EXCL;  // PIDFD_THREAD
  const int first = pidfd_open(getpid(), of_thread), other = pidfd_open(number, of_thread | O_NONBLOCK);
  const bool knows_threads = first >= 0;  // Linux 6.9
  const int other_again = knows_threads ? fcntl(other, F_DUPFD, 100) : -1;
  probe::await(opened, 1);
  probe::ready();
  probe::wait_for_go();

  if (knows_threads) {
    CHECK(fcntl(first, F_GETFL) & static_cast<int>(of_thread));
    CHECK_EQUAL(fcntl(other, F_GETFL) & (O_EXCL | O_NONBLOCK), O_EXCL | O_NONBLOCK);
    CHECK_EQUAL(fcntl(other, F_GETFD), FD_CLOEXEC);
    CHECK_EQUAL(fcntl(other_again, F_GETFD), 0);
    CHECK(fcntl(other, F_SETFL, 0) == 0);
    CHECK_EQUAL(fcntl(other_again, F_GETFL) & O_NONBLOCK, 0);  // it is the same one
    CHECK(!is_over(first) && !is_over(other));
    CHECK(pidfd_send_signal(other_again, SIGUSR2, nullptr, 0) == 0);  // to that thread alone
    CHECK(pthread_join(thread, nullptr) == 0);
    CHECK(is_over(other) && is_over(other_again) && !is_over(first));
  }
  CHECK_EQUAL(sigwaitinfo(&usr1, &info), SIGUSR1);
  CHECK_EQUAL(info.si_pid, child);
  CHECK(!is_over(self) && !is_over(of_child) && is_over(of_dead) && is_over(exited) && is_over(killed));
  CHECK_EQUAL(fcntl(self, F_GETFD), FD_CLOEXEC);
  CHECK_EQUAL(inode(of_child), inode(twin));
  CHECK_EQUAL(inode(killed), inode(killed_again));
  CHECK(inode(killed) != inode(exited));
  CHECK(pidfd_send_signal(exited, 0, nullptr, 0) < 0 && errno == ESRCH);
  CHECK_EQUAL(end_of(exited), 42 << 8);
  CHECK_EQUAL(end_of(killed), SIGTERM);
  CHECK(waitid(P_PIDFD, static_cast<id_t>(of_dead), &info, WEXITED) == 0);
  CHECK_EQUAL(info.si_status, 9);
  CHECK(pidfd_send_signal(of_child, SIGKILL, nullptr, 0) == 0);
  CHECK(waitid(P_PIDFD, static_cast<id_t>(twin), &info, WEXITED) == 0);
  CHECK_EQUAL(info.si_pid, child);
  CHECK(is_over(of_child));
  return probe::passed();
}
