// A child in strict mode: it may read, write and exit, nothing else.
// LAZY
#include <linux/seccomp.h>
#include <sys/prctl.h>

#include "probe.h"

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  int to_child[2], from_child[2];
  CHECK(pipe(to_child) == 0 && pipe(from_child) == 0);
  const pid_t child = fork();
  if (child == 0) {
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0);
    char byte = 0;
    if (write(from_child[1], "s", 1) != 1) syscall(SYS_exit, 2);
    if (read(to_child[0], &byte, 1) != 1 || byte != 'g') syscall(SYS_exit, 3);
    if (write(from_child[1], "d", 1) != 1) syscall(SYS_exit, 4);
    syscall(SYS_getppid);  // strict mode kills for this
    syscall(SYS_exit, 5);
  }
  char byte = 0;
  CHECK(read(from_child[0], &byte, 1) == 1 && byte == 's');
  usleep(20'000);
  probe::ready();
  probe::wait_for_go();
  CHECK(write(to_child[1], "g", 1) == 1);
  CHECK(read(from_child[0], &byte, 1) == 1 && byte == 'd');
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  return probe::passed();
}
