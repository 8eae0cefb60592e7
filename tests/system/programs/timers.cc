// Interval timers and POSIX timers with their ids, clocks, notification, remaining time and interval.
// IGNORE: signals.pending     (a timer may fire between the stop and the look)
// IGNORE: timers.interval     (one that has fired is disarmed until its signal is taken)
#include <pthread.h>
#include <sys/time.h>

#include "probe.h"

namespace {

volatile int alarms = 0, timer_signals = 0;
void on_alarm(int) { alarms = alarms + 1; }
void on_timer(int, siginfo_t* info, void*) { timer_signals = timer_signals + (info->si_value.sival_int == 42); }

int create(clockid_t clock, int notify, int signal, int value) {
  struct {
    sigval value;
    int signal, notify, tid;
    char rest[48];
  } event = {{value}, signal, notify, gettid(), {}};
  int id = -1;
  CHECK(syscall(SYS_timer_create, clock, &event, &id) == 0);
  return id;
}

void arm(int id, long seconds, long interval_ms) {
  const itimerspec when = {{interval_ms / 1000, interval_ms % 1000 * 1'000'000}, {seconds, 0}};
  CHECK(syscall(SYS_timer_settime, id, 0, &when, nullptr) == 0);
}

itimerspec left(int id) {
  itimerspec when = {};
  CHECK(syscall(SYS_timer_gettime, id, &when) == 0);
  return when;
}

constexpr long period = 30;

/// A timer of this thread whose signal is taken five periods too late: the count of that delivery stays until the next,
/// which is far away.
int create_overrun(int notify) {
  const int id = create(CLOCK_MONOTONIC, notify, SIGRTMIN + 4, 7);
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGRTMIN + 4);
  CHECK(pthread_sigmask(SIG_BLOCK, &blocked, nullptr) == 0);
  timespec clock;
  CHECK(clock_gettime(CLOCK_MONOTONIC, &clock) == 0);
  const itimerspec begun_long_ago = {{period, 0}, {clock.tv_sec - 5 * period - 3, clock.tv_nsec}};
  CHECK(syscall(SYS_timer_settime, id, TIMER_ABSTIME, &begun_long_ago, nullptr) == 0);
  CHECK_EQUAL(sigwaitinfo(&blocked, nullptr), SIGRTMIN + 4);
  return id;
}

volatile int of_thread = -1;
void* other_thread(void*) {
  of_thread = create_overrun(SIGEV_THREAD_ID);
  for (;;) pause();
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  // A dump may find a handler running; SA_NODEFER, so that the blocked signals are the same then.
  struct sigaction action = {};
  action.sa_handler = on_alarm;
  action.sa_flags = SA_RESTART | SA_NODEFER;
  CHECK(sigaction(SIGALRM, &action, nullptr) == 0 && sigaction(SIGVTALRM, &action, nullptr) == 0);
  action.sa_sigaction = on_timer;
  action.sa_flags |= SA_SIGINFO;
  CHECK(sigaction(SIGRTMIN + 3, &action, nullptr) == 0);

  const itimerval real = {{0, 50'000}, {0, 50'000}}, virt = {{1000, 0}, {5000, 0}}, prof = {{700, 0}, {4000, 0}};
  CHECK(setitimer(ITIMER_REAL, &real, nullptr) == 0 && setitimer(ITIMER_VIRTUAL, &virt, nullptr) == 0);
  CHECK(setitimer(ITIMER_PROF, &prof, nullptr) == 0);

  int ids[5];
  for (int i = 0; i < 5; ++i) ids[i] = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, i);
  CHECK(syscall(SYS_timer_delete, ids[1]) == 0 && syscall(SYS_timer_delete, ids[3]) == 0);  // holes in the ids
  arm(ids[2], 100'000, 7'000);
  const int ticking = create(CLOCK_REALTIME, SIGEV_THREAD_ID, SIGRTMIN + 3, 42);
  arm(ticking, 0, 0);
  const itimerspec soon = {{0, 20'000'000}, {0, 20'000'000}};
  CHECK(syscall(SYS_timer_settime, ticking, 0, &soon, nullptr) == 0);
  const int boot = create(CLOCK_BOOTTIME, SIGEV_SIGNAL, SIGRTMIN + 3, 1);
  arm(boot, 3600, 0);

  const int rare = create_overrun(SIGEV_SIGNAL);
  pthread_t thread;
  CHECK(pthread_create(&thread, nullptr, other_thread, nullptr) == 0);
  while (of_thread < 0) usleep(1000);
  CHECK_EQUAL(syscall(SYS_timer_getoverrun, rare), 5);
  CHECK_EQUAL(syscall(SYS_timer_getoverrun, of_thread), 5);

  probe::ready();
  probe::wait_for_go();

  CHECK_EQUAL(syscall(SYS_timer_getoverrun, rare), 5);
  CHECK_EQUAL(syscall(SYS_timer_getoverrun, of_thread), 5);
  CHECK(left(rare).it_value.tv_sec < period && left(rare).it_interval.tv_sec == period);
  const int alarms_before = alarms, signals_before = timer_signals;
  for (int i = 0; i < 100 && (alarms < alarms_before + 3 || timer_signals < signals_before + 3); ++i) usleep(20'000);
  CHECK(alarms >= alarms_before + 3);
  CHECK(timer_signals >= signals_before + 3);
  itimerval now;
  CHECK(getitimer(ITIMER_REAL, &now) == 0);
  CHECK_EQUAL(now.it_interval.tv_usec, 50'000);
  CHECK(getitimer(ITIMER_VIRTUAL, &now) == 0);
  CHECK_EQUAL(now.it_interval.tv_sec, 1000);
  CHECK(now.it_value.tv_sec <= 5000 && now.it_value.tv_sec > 4900);
  CHECK(getitimer(ITIMER_PROF, &now) == 0);
  CHECK_EQUAL(now.it_interval.tv_sec, 700);
  CHECK(now.it_value.tv_sec <= 4000 && now.it_value.tv_sec > 3900);
  CHECK(left(ids[2]).it_value.tv_sec > 99'000 && left(ids[2]).it_value.tv_sec <= 100'000);
  CHECK_EQUAL(left(ids[2]).it_interval.tv_sec, 7);
  CHECK_EQUAL(left(ids[0]).it_value.tv_sec, 0);
  CHECK(left(boot).it_value.tv_sec > 3500);
  itimerspec nothing;
  CHECK(syscall(SYS_timer_gettime, ids[1], &nothing) < 0 && errno == EINVAL);
  CHECK(syscall(SYS_timer_gettime, ids[3], &nothing) < 0 && errno == EINVAL);
  return probe::passed();
}
