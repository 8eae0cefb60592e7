// System calls that sleep go on after the cycle as after a stop and continue: no EINTR, nothing lost.
// LAZY
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sys/select.h>

#include <iterator>

#include "probe.h"

namespace {

int pipe_ends[2], idle_pipe[2];
volatile int futex_word = 0, started = 0, cycle_is_over = 0;

/// A thread sits in one call; what it returns is judged by the main thread.
struct Sleeper {
  const char* name;
  long (*call)();
  long wanted;
  pthread_t thread;
  volatile pid_t tid;
  long result;
  int error;
};

long in_read() {
  char byte = 0;
  return read(pipe_ends[0], &byte, 1) == 1 ? byte : -1;
}
long in_futex() { return syscall(SYS_futex, &futex_word, FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr, 0); }
long in_long_futex() {
  const timespec timeout = {3000, 0};
  return syscall(SYS_futex, &futex_word, FUTEX_WAIT_PRIVATE, 0, &timeout, nullptr, 0);
}
long in_nanosleep() {
  const timespec pause = {0, 700'000'000};
  return nanosleep(&pause, nullptr);
}
long in_absolute_sleep() {
  timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  until.tv_sec += 1;
  return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
}
long in_poll() {
  pollfd idle = {idle_pipe[0], POLLIN, 0};
  return poll(&idle, 1, 800);
}
long in_select() {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(idle_pipe[0], &set);
  timeval timeout = {0, 900'000};
  return select(idle_pipe[0] + 1, &set, nullptr, nullptr, &timeout);
}

void* run(void* argument) {
  auto& sleeper = *static_cast<Sleeper*>(argument);
  sleeper.tid = gettid();
  __atomic_add_fetch(&started, 1, __ATOMIC_RELEASE);
  sleeper.result = sleeper.call();
  sleeper.error = errno;
  probe::await(&cycle_is_over, 1);  // the tree is compared until then
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  CHECK(pipe(pipe_ends) == 0 && pipe(idle_pipe) == 0);
  Sleeper sleepers[] = {{"read", in_read, 'r', {}, 0, -2, 0},
                        {"futex", in_futex, 0, {}, 0, -2, 0},
                        {"futex with timeout", in_long_futex, 0, {}, 0, -2, 0},
                        {"nanosleep", in_nanosleep, 0, {}, 0, -2, 0},
                        {"absolute sleep", in_absolute_sleep, 0, {}, 0, -2, 0},
                        {"poll", in_poll, 0, {}, 0, -2, 0},
                        {"select", in_select, 0, {}, 0, -2, 0}};
  for (auto& sleeper : sleepers) CHECK(pthread_create(&sleeper.thread, nullptr, run, &sleeper) == 0);
  probe::await(&started, static_cast<int>(std::size(sleepers)));
  usleep(50'000);
  probe::ready();
  probe::wait_for_go();
  __atomic_store_n(&cycle_is_over, 1, __ATOMIC_RELEASE);
  CHECK(write(pipe_ends[1], "r", 1) == 1);
  __atomic_store_n(&futex_word, 1, __ATOMIC_RELEASE);
  syscall(SYS_futex, &futex_word, FUTEX_WAKE_PRIVATE, 100, nullptr, nullptr, 0);
  for (auto& sleeper : sleepers) {
    CHECK(pthread_join(sleeper.thread, nullptr) == 0);
    // A futex whose word changed while nobody waited answers EAGAIN when the call is made again: that is no
    // interruption.
    const bool changed = sleeper.result == -1 && sleeper.error == EAGAIN;
    if (sleeper.result != sleeper.wanted && !changed)
      probe::failed("%s returned %ld (errno %d: %s)", sleeper.name, sleeper.result, sleeper.error,
                    strerror(sleeper.error));
  }
  return probe::passed();
}
