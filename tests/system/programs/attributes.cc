// What prctl, personality and procfs know of a process: all as before.
// ROOT: sets its OOM score while it cannot be dumped by users
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "probe.h"

namespace {

int oom_score_adj(int wanted) {
  char text[16] = {};
  const int fd = open("/proc/self/oom_score_adj", O_RDWR);
  CHECK(fd >= 0);
  if (wanted != 0) CHECK(dprintf(fd, "%d", wanted) > 0);
  CHECK(pread(fd, text, sizeof text - 1, 0) > 0);
  close(fd);
  return atoi(text);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  CHECK(personality(ADDR_NO_RANDOMIZE | UNAME26) >= 0);
  CHECK(prctl(PR_SET_DUMPABLE, 0) == 0);
  CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  CHECK(prctl(PR_SET_PDEATHSIG, SIGUSR1) == 0);
  CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
  CHECK(prctl(PR_SET_TIMERSLACK, 123'456) == 0);
  CHECK(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
  CHECK(prctl(PR_SET_NAME, "renamed task") == 0);
  signal(SIGUSR1, SIG_IGN);
  umask(0137);
  CHECK_EQUAL(oom_score_adj(500), 500);
  const rlimit files = {500, 600}, core = {0, 0};
  CHECK(setrlimit(RLIMIT_NOFILE, &files) == 0 && setrlimit(RLIMIT_CORE, &core) == 0);
  CHECK(chdir(probe::directory) == 0);

  probe::ready();
  probe::wait_for_go();

  CHECK_EQUAL(personality(0xffffffff), ADDR_NO_RANDOMIZE | UNAME26);
  CHECK_EQUAL(prctl(PR_GET_DUMPABLE), 0);
  CHECK_EQUAL(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
  int value = 0;
  CHECK(prctl(PR_GET_PDEATHSIG, &value) == 0);
  CHECK_EQUAL(value, SIGUSR1);
  CHECK(prctl(PR_GET_CHILD_SUBREAPER, &value) == 0);
  CHECK_EQUAL(value, 1);
  CHECK_EQUAL(prctl(PR_GET_TIMERSLACK), 123'456);
  CHECK_EQUAL(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1);
  char name[16];
  CHECK(prctl(PR_GET_NAME, name) == 0 && strcmp(name, "renamed task") == 0);
  CHECK_EQUAL(umask(0), 0137);
  CHECK_EQUAL(oom_score_adj(0), 500);
  rlimit limit;
  CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
  CHECK_EQUAL(limit.rlim_cur, 500);
  CHECK_EQUAL(limit.rlim_max, 600);
  CHECK(getrlimit(RLIMIT_CORE, &limit) == 0 && limit.rlim_max == 0);
  char here[4096], expected[4096];
  CHECK(getcwd(here, sizeof here) != nullptr && realpath(probe::directory, expected) != nullptr);
  CHECK(strcmp(here, expected) == 0);
  // Heap, arguments and environment are where procfs says.
  char cmdline[4096] = {};
  const int fd = open("/proc/self/cmdline", O_RDONLY);
  CHECK(fd >= 0 && read(fd, cmdline, sizeof cmdline - 1) > 0);
  CHECK(strcmp(cmdline, argv[0]) == 0);
  char* const before = static_cast<char*>(sbrk(4096));
  CHECK(before != reinterpret_cast<char*>(-1));
  memset(before, 1, 4096);
  char link[4096] = {};
  CHECK(readlink("/proc/self/exe", link, sizeof link - 1) > 0);
  CHECK(strstr(link, "attributes") != nullptr);
  return probe::passed();
}
