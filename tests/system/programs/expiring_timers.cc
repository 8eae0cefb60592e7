// Timers that expire once: each alarm comes, ends the call that waits for it, and does not come again.
// tests/system/live lets them expire in the middle of a dump.
#include <pthread.h>
#include <sys/time.h>

#include "probe.h"

namespace {

constexpr int delay_s = 2;
int idle_pipe[2];
volatile int alarms = 0, thread_alarms = 0, timer = -1;
void on_alarm(int) { alarms = alarms + 1; }
void on_thread_alarm(int) { thread_alarms = thread_alarms + 1; }

void handle(int number, void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;  // without SA_RESTART
  CHECK(sigaction(number, &action, nullptr) == 0);
}

void* read_until_interrupted(void*) {
  sigset_t alarm;
  sigemptyset(&alarm);
  sigaddset(&alarm, SIGALRM);
  CHECK(pthread_sigmask(SIG_BLOCK, &alarm, nullptr) == 0);
  struct {
    sigval value;
    int signal, notify, tid;
    char rest[48];
  } event = {{}, SIGRTMIN + 3, SIGEV_THREAD_ID, gettid(), {}};
  int id = -1;
  CHECK(syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &id) == 0);
  timer = id;
  char byte;
  CHECK(read(idle_pipe[0], &byte, 1) < 0 && errno == EINTR);
  return nullptr;
}

bool exists(const char* name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", probe::directory, name);
  return access(path, F_OK) == 0;
}

void say(const char* name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", probe::directory, name);
  const int fd = open(path, O_CREAT | O_WRONLY, 0644);
  CHECK(fd >= 0 && close(fd) == 0);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  handle(SIGALRM, on_alarm), handle(SIGRTMIN + 3, on_thread_alarm);
  CHECK(pipe(idle_pipe) == 0);
  pthread_t reader;
  CHECK(pthread_create(&reader, nullptr, read_until_interrupted, nullptr) == 0);
  while (timer < 0) usleep(1000);
  probe::ready();
  while (!exists("arm") && !probe::go_has_come()) usleep(5000);

  say("armed");
  const itimerspec when = {{}, {delay_s, 0}};
  const itimerval real = {{}, {delay_s, 0}};
  CHECK(syscall(SYS_timer_settime, timer, 0, &when, nullptr) == 0 && setitimer(ITIMER_REAL, &real, nullptr) == 0);
  CHECK(pause() < 0 && errno == EINTR);
  CHECK(pthread_join(reader, nullptr) == 0);
  say("alarmed");
  probe::wait_for_go();
  CHECK_EQUAL(alarms, 1);
  CHECK_EQUAL(thread_alarms, 1);
  itimerspec left;
  itimerval real_left;
  CHECK(syscall(SYS_timer_gettime, timer, &left) == 0 && getitimer(ITIMER_REAL, &real_left) == 0);
  CHECK(left.it_value.tv_sec == 0 && left.it_value.tv_nsec == 0);
  CHECK(real_left.it_value.tv_sec == 0 && real_left.it_value.tv_usec == 0);
  return probe::passed();
}
