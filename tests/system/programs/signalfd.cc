// signalfd: masks, a pending signal that is read through it, a mask that is changed later.
#include <sys/signalfd.h>

#include "probe.h"

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  sigset_t users, all;
  sigemptyset(&users);
  sigaddset(&users, SIGUSR1);
  sigaddset(&users, SIGRTMIN + 3);
  sigfillset(&all);
  CHECK(sigprocmask(SIG_BLOCK, &users, nullptr) == 0);
  const int some = signalfd(-1, &users, SFD_NONBLOCK), every = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
  CHECK(some >= 0 && every >= 0);
  sigval value;
  value.sival_int = 4711;
  CHECK(sigqueue(getpid(), SIGRTMIN + 3, value) == 0);
  probe::ready();
  probe::wait_for_go();

  CHECK_EQUAL(fcntl(some, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
  CHECK_EQUAL(fcntl(every, F_GETFD), FD_CLOEXEC);
  signalfd_siginfo info;
  CHECK(read(some, &info, sizeof info) == sizeof info);
  CHECK_EQUAL(info.ssi_signo, SIGRTMIN + 3);
  CHECK_EQUAL(info.ssi_int, 4711);
  CHECK(read(some, &info, sizeof info) < 0 && errno == EAGAIN);
  CHECK(kill(getpid(), SIGUSR1) == 0);
  CHECK(read(every, &info, sizeof info) == sizeof info);
  CHECK_EQUAL(info.ssi_signo, SIGUSR1);
  CHECK(read(every, &info, sizeof info) < 0 && errno == EAGAIN);
  return probe::passed();
}
