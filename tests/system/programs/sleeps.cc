// Sleeps go on with what remains of them: the driver compares what the images say, dump after dump. After the cycle
// each ends as its call should: by a signal with EINTR, by an event, or by its time, and with its registers as they
// were.
// LAZY
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sys/select.h>

#include <iterator>

#include "probe.h"

namespace {

constexpr long long s = 1'000'000'000;
int idle_pipe[2], busy_pipe[2];
int idle_word = 0, busy_word = 0;
volatile int asleep = 0, cycle_is_over = 0;

/// A system call whose arguments must still be in their registers when it returns.
long call(long number, unsigned long a, unsigned long b, unsigned long c, unsigned long d, unsigned long e,
          unsigned long f) {
  unsigned long rdi = a, rsi = b, rdx = c;
  register unsigned long r10 asm("r10") = d;
  register unsigned long r8 asm("r8") = e;
  register unsigned long r9 asm("r9") = f;
  long result;
  asm volatile("syscall"
               : "=a"(result), "+D"(rdi), "+S"(rsi), "+d"(rdx), "+r"(r10), "+r"(r8), "+r"(r9)
               : "0"(number)
               : "rcx", "r11", "memory");
  CHECK(rdi == a && rsi == b && rdx == c && r10 == d && r8 == e && r9 == f);
  return result;
}

unsigned long at(const void* pointer) { return reinterpret_cast<unsigned long>(pointer); }
timespec time_of(long long ns) { return {static_cast<time_t>(ns / s), static_cast<long>(ns % s)}; }
long long ns_of(const timespec& time) { return time.tv_sec * s + time.tv_nsec; }
long long now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return ns_of(time);
}

struct Sleeper {
  const char* name;
  long long duration;
  long (*sleep)(long long duration);
  enum class End { signal, event, time } end;
  bool in_images = true;  ///< whether the image says what remains
  pthread_t thread = {};
  volatile pid_t tid = 0;
  char proc[64] = "";  ///< its state; a tid is another number there if /proc is not of our pid namespace
};

long in_nanosleep(long long duration) {
  const timespec time = time_of(duration);
  return call(SYS_nanosleep, at(&time), 0, 0, 0, 0, 0);
}
long in_nanosleep_with_remainder(long long duration) {
  const timespec time = time_of(duration);
  timespec rest = {};
  const long result = call(SYS_nanosleep, at(&time), at(&rest), 0, 0, 0, 0);
  CHECK(ns_of(rest) > 0 && ns_of(rest) < duration);
  return result;
}
long in_its_own_remainder(long long duration) {  // as sleep(3) does it
  timespec time = time_of(duration);
  const long result = call(SYS_clock_nanosleep, CLOCK_REALTIME, 0, at(&time), at(&time), 0, 0);
  CHECK(ns_of(time) > 0 && ns_of(time) < duration);
  return result;
}
template <int Clock>
long in_clock_nanosleep(long long duration) {
  const timespec time = time_of(duration);
  return call(SYS_clock_nanosleep, Clock, 0, at(&time), 0, 0, 0);
}
long in_poll(long long duration) {
  pollfd idle = {idle_pipe[0], POLLIN, 0};
  return call(SYS_poll, at(&idle), 1, static_cast<unsigned long>(duration / 1'000'000), 0, 0, 0);
}
long in_busy_poll(long long duration) {
  pollfd busy = {busy_pipe[0], POLLIN, 0};
  const long result = call(SYS_poll, at(&busy), 1, static_cast<unsigned long>(duration / 1'000'000), 0, 0, 0);
  CHECK(result == 1 && busy.revents == POLLIN);
  return 0;
}
long in_endless_poll(long long) {
  pollfd idle = {idle_pipe[0], POLLIN, 0};
  return call(SYS_poll, at(&idle), 1, static_cast<unsigned long>(-1), 0, 0, 0);
}
long in_futex(long long duration) {
  const timespec time = time_of(duration);
  return call(SYS_futex, at(&idle_word), FUTEX_WAIT_PRIVATE, 0, at(&time), 0, 0);
}
long in_busy_futex(long long duration) {
  const timespec time = time_of(duration);
  return call(SYS_futex, at(&busy_word), FUTEX_WAIT, 0, at(&time), 0, 0);
}
long in_absolute_futex(long long duration) {
  const timespec time = time_of(now() + duration);
  return call(SYS_futex, at(&idle_word), FUTEX_WAIT_BITSET_PRIVATE, 0, at(&time), 0, FUTEX_BITSET_MATCH_ANY);
}
long in_absolute_sleep(long long duration) {
  const timespec time = time_of(now() + duration);
  return call(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, at(&time), 0, 0, 0);
}
long in_ppoll(long long duration) {
  timespec time = time_of(duration);
  const long result = call(SYS_ppoll, 0, 0, at(&time), 0, 0, 0);
  CHECK(ns_of(time) > 0 && ns_of(time) < duration);
  return result;
}
long in_select(long long duration) {
  timeval time = {static_cast<time_t>(duration / s), 0};
  const long result = call(SYS_select, 0, 0, 0, 0, at(&time), 0);
  CHECK(time.tv_sec < duration / s);
  return result;
}

void* run(void* argument) {
  auto& sleeper = *static_cast<Sleeper*>(argument);
  sleeper.tid = gettid();
  char link[40] = "";
  CHECK(readlink("/proc/thread-self", link, sizeof link - 1) > 0);
  snprintf(sleeper.proc, sizeof sleeper.proc, "/proc/%s/stat", link);
  const long long start = now();
  __atomic_add_fetch(&asleep, 1, __ATOMIC_RELEASE);
  const long result = sleeper.sleep(sleeper.duration);
  const long wanted = sleeper.end == Sleeper::End::signal ? -EINTR : 0;
  if (result != wanted) probe::failed("%s returned %ld, not %ld", sleeper.name, result, wanted);
  if (sleeper.end == Sleeper::End::time && now() - start < sleeper.duration)
    probe::failed("%s ended after %lld ns of %lld", sleeper.name, now() - start, sleeper.duration);
  probe::await(&cycle_is_over, 1);  // the tree is compared until then
  return nullptr;
}

bool is_asleep(const Sleeper& sleeper) {
  char text[512] = "";
  const int fd = open(sleeper.proc, O_RDONLY);
  CHECK(fd >= 0 && read(fd, text, sizeof text - 1) > 0);
  close(fd);
  return strrchr(text, ')')[2] == 'S';
}

void on_signal(int) {}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  CHECK(pipe(idle_pipe) == 0 && pipe(busy_pipe) == 0);
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;  // these calls are not restarted all the same
  CHECK(sigaction(SIGUSR1, &action, nullptr) == 0);
  using End = Sleeper::End;
  // Those that ask for the same duration can only be told apart by their timers.
  Sleeper sleepers[] = {{"nanosleep", 3000 * s, in_nanosleep, End::signal},
                        {"nanosleep again", 3000 * s, in_nanosleep, End::signal},
                        {"nanosleep once more", 3000 * s, in_nanosleep, End::signal},
                        {"nanosleep with remainder", 2000 * s, in_nanosleep_with_remainder, End::signal},
                        {"sleep", 1500 * s, in_its_own_remainder, End::signal},
                        {"sleep by CLOCK_REALTIME", 3000 * s, in_clock_nanosleep<CLOCK_REALTIME>, End::signal},
                        {"sleep by CLOCK_MONOTONIC", 2500 * s, in_clock_nanosleep<CLOCK_MONOTONIC>, End::signal},
                        {"sleep by CLOCK_BOOTTIME", 3000 * s, in_clock_nanosleep<CLOCK_BOOTTIME>, End::signal},
                        {"short sleep", s / 2, in_nanosleep, End::time, false},
                        {"poll", 3000 * s, in_poll, End::signal},
                        {"poll with an event", 3000 * s, in_busy_poll, End::event},
                        {"endless poll", 0, in_endless_poll, End::signal, false},
                        {"futex", 3000 * s, in_futex, End::signal},
                        {"futex that is woken", 2500 * s, in_busy_futex, End::event},
                        {"absolute futex", 3000 * s, in_absolute_futex, End::signal, false},
                        {"absolute sleep", s / 2, in_absolute_sleep, End::time, false},
                        {"ppoll", 3000 * s, in_ppoll, End::signal, false},
                        {"select", 3000 * s, in_select, End::signal, false}};
  char path[4096];
  snprintf(path, sizeof path, "%s/sleeps", probe::directory);
  FILE* said = fopen(path, "w");
  CHECK(said != nullptr);
  int started = 0;
  for (auto& sleeper : sleepers) {
    CHECK(pthread_create(&sleeper.thread, nullptr, run, &sleeper) == 0);
    probe::await(&asleep, ++started);
    while (!is_asleep(sleeper)) usleep(1000);  // so that the next one begins, and ends, later
    if (sleeper.in_images) fprintf(said, "%d %lld %s\n", sleeper.tid, sleeper.duration, sleeper.name);
  }
  CHECK(fclose(said) == 0);
  probe::ready();
  probe::wait_for_go();
  __atomic_store_n(&cycle_is_over, 1, __ATOMIC_RELEASE);
  CHECK(write(busy_pipe[1], "x", 1) == 1);
  CHECK_EQUAL(syscall(SYS_futex, &busy_word, FUTEX_WAKE, 1, nullptr, nullptr, 0), 1);
  for (auto& sleeper : sleepers) {
    if (sleeper.end == End::signal) CHECK(pthread_kill(sleeper.thread, SIGUSR1) == 0);
  }
  for (auto& sleeper : sleepers) CHECK(pthread_join(sleeper.thread, nullptr) == 0);
  return probe::passed();
}
