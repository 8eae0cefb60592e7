// What SEM_UNDO will undo when a process ends, in an IPC namespace of the tree's own: what was taken, what was given,
// and has been taken by somebody else since; of a process with a thread, and of several with the same set.
//
// FAIL_RESTORE
// ROOT: makes an IPC namespace
#include <pthread.h>
#include <sched.h>
#include <sys/ipc.h>
#include <sys/sem.h>

#include "probe.h"

namespace {

struct Shared {
  int ready, end;
};

void change(int set, unsigned short index, short by, short flags) {
  sembuf operation = {index, by, (short)(flags | IPC_NOWAIT)};
  CHECK(semop(set, &operation, 1) == 0);
}

void* wait_forever(void*) {
  for (;;) pause();
}

/// Takes and gives, and ends when it is told to.
pid_t user_of(int set, Shared* shared, int number, short taken, short given) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child != 0) {
    probe::await(&shared->ready, number);
    return child;
  }
  pthread_t thread;
  CHECK(pthread_create(&thread, nullptr, wait_forever, nullptr) == 0);
  change(set, 0, -taken, SEM_UNDO);
  change(set, 1, given, SEM_UNDO);
  __atomic_store_n(&shared->ready, number, __ATOMIC_RELEASE);
  probe::await(&shared->end, number);
  _exit(0);
}

void expect(int set, int first, int second, int third) {
  CHECK_EQUAL(semctl(set, 0, GETVAL), first);
  CHECK_EQUAL(semctl(set, 1, GETVAL), second);
  CHECK_EQUAL(semctl(set, 2, GETVAL), third);
}

void end(Shared* shared, int number, pid_t child) {
  __atomic_store_n(&shared->end, number, __ATOMIC_RELEASE);
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK_EQUAL(status, 0);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  CHECK(unshare(CLONE_NEWIPC) == 0);
  auto* shared = probe::shared_memory<Shared>();
  const int set = semget(0x77, 3, IPC_CREAT | 0600);
  unsigned short values[] = {9, 1, 32000};
  CHECK(set >= 0 && semctl(set, 0, SETALL, values) == 0);
  const pid_t first = user_of(set, shared, 1, 2, 4), second = user_of(set, shared, 2, 5, 3);
  change(set, 2, -5, SEM_UNDO);
  change(set, 1, -8, 0);  // all that there is
  expect(set, 2, 0, 31995);

  probe::ready();
  probe::wait_for_go();

  expect(set, 2, 0, 31995);
  change(set, 1, 10, 0);
  end(shared, 1, first);
  expect(set, 4, 6, 31995);
  end(shared, 2, second);
  expect(set, 9, 3, 31995);
  change(set, 2, 5, SEM_UNDO);
  CHECK(semctl(set, 0, IPC_RMID) == 0);
  probe::passed();
}
