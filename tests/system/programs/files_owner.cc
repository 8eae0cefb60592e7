// Owners of descriptors that come into being later than the descriptors themselves: a thread and a group of a child;
// and the ids of who has named an owner, which decide whether the signal reaches somebody else's process.
#include "probe.h"

#include <pthread.h>
#include <sys/syscall.h>

namespace {

struct Shared {
  int thread, is_ready;
};

void* report(void* shared) {
  static_cast<Shared*>(shared)->thread = static_cast<int>(syscall(SYS_gettid));
  static_cast<Shared*>(shared)->is_ready = 1;
  for (;;) pause();
}

void own(int fd, __pid_type type, pid_t id) {
  const f_owner_ex owner{type, id};
  CHECK(fcntl(fd, F_SETOWN_EX, &owner) == 0 && fcntl(fd, F_SETSIG, SIGRTMIN + 1) == 0);
}

void expect_owner(int fd, __pid_type type, pid_t id) {
  f_owner_ex owner{};
  CHECK(fcntl(fd, F_GETOWN_EX, &owner) == 0);
  CHECK_EQUAL(owner.type, type);
  CHECK_EQUAL(owner.pid, id);
  CHECK_EQUAL(fcntl(fd, F_GETSIG), SIGRTMIN + 1);
}

/// Real and effective user of who has named the owner.
struct Setter {
  uid_t real, effective;
};

void own_as(Setter setter, int fd) {
  const uid_t real = getuid(), effective = geteuid();
  CHECK(setresuid(setter.real, setter.effective, effective) == 0);
  own(fd, F_OWNER_PID, getpid());
  CHECK(setresuid(real, effective, effective) == 0);
}

void expect_setter(int fd, Setter setter) {
  constexpr int get_owner_uids = 17;  // F_GETOWNER_UIDS
  uid_t ids[2]{};
  CHECK(fcntl(fd, get_owner_uids, ids) == 0);
  CHECK_EQUAL(ids[0], setter.real);
  CHECK_EQUAL(ids[1], setter.effective);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  auto* const shared = probe::shared_memory<Shared>();
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    CHECK(setpgid(0, 0) == 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, nullptr, report, shared) == 0);
    for (;;) pause();
  }
  while (__atomic_load_n(&shared->is_ready, __ATOMIC_ACQUIRE) == 0) usleep(1000);
  int of_thread[2], of_group[2];
  CHECK(pipe(of_thread) == 0 && pipe(of_group) == 0);
  own(of_thread[0], F_OWNER_TID, shared->thread);
  own(of_group[0], F_OWNER_PGRP, child);
  // An ordinary user has no choice.
  const bool may_change = geteuid() == 0;
  const Setter somebody{may_change ? 2001 : getuid(), may_change ? 2002 : geteuid()}, oneself{getuid(), geteuid()};
  int of_others[2];
  CHECK(pipe(of_others) == 0);
  own_as(somebody, of_others[0]);
  own_as(oneself, of_others[1]);
  probe::ready();
  probe::wait_for_go();
  expect_owner(of_thread[0], F_OWNER_TID, shared->thread);
  expect_owner(of_group[0], F_OWNER_PGRP, child);
  expect_owner(of_others[0], F_OWNER_PID, getpid());
  expect_setter(of_others[0], somebody);
  expect_setter(of_others[1], oneself);
  CHECK(kill(child, SIGKILL) == 0 && waitpid(child, nullptr, 0) == child);
  probe::passed();
}
