// POSIX semaphores with names. sem_open(3) makes the file under a passing name, links it to its own and removes the
// first: whoever has made one has it mapped under a name that is gone, though the file has another.
#include <fcntl.h>
#include <semaphore.h>
#include <sys/wait.h>

#include "probe.h"

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  char request_name[128], answer_name[128], gone_name[128];
  const char* own =
      strrchr(probe::directory, '/') + 1;  // pids come back: what a killed test left behind is in nobody's way
  snprintf(request_name, sizeof request_name, "/%.80s-request", own);
  snprintf(answer_name, sizeof answer_name, "/%.80s-answer", own);
  snprintf(gone_name, sizeof gone_name, "/%.80s-gone", own);
  sem_t* const request = sem_open(request_name, O_CREAT | O_EXCL, 0600, 2);
  sem_t* const answer = sem_open(answer_name, O_CREAT | O_EXCL, 0600, 0);
  sem_t* const gone = sem_open(gone_name, O_CREAT | O_EXCL, 0600, 3);
  CHECK(request != SEM_FAILED && answer != SEM_FAILED && gone != SEM_FAILED && sem_unlink(gone_name) == 0);
  CHECK(sem_wait(request) == 0);

  const pid_t child = fork();
  if (child == 0) {
    CHECK(sem_wait(request) == 0 && sem_post(answer) == 0);  // the one that is left, before the dump
    CHECK(sem_wait(request) == 0);                           // sleeps until the parent goes on
    CHECK(sem_wait(gone) == 0 && sem_post(answer) == 0);
    _exit(0);
  }
  CHECK(child > 0 && sem_wait(answer) == 0);

  probe::ready();
  probe::wait_for_go();

  // Opened once more by name it is the same one.
  sem_t* const again = sem_open(request_name, 0);
  CHECK(again != SEM_FAILED && sem_post(again) == 0 && sem_wait(answer) == 0);
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  int value = 0;
  CHECK(sem_getvalue(gone, &value) == 0);
  CHECK_EQUAL(value, 2);
  CHECK(sem_unlink(request_name) == 0 && sem_unlink(answer_name) == 0);
  return probe::passed();
}
