// What prctl, personality and procfs know of a process: all as before.
// ROOT: sets its OOM score while it cannot be dumped by users
#include <pthread.h>
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

unsigned coredump_filter() {
  char text[16] = {};
  const int fd = open("/proc/self/coredump_filter", O_RDONLY);
  CHECK(fd >= 0 && read(fd, text, sizeof text - 1) > 0);
  close(fd);
  return static_cast<unsigned>(strtoul(text, nullptr, 16));
}

void set_coredump_filter(unsigned wanted) {
  const int fd = open("/proc/self/coredump_filter", O_WRONLY);
  CHECK(fd >= 0 && dprintf(fd, "%#x", wanted) > 0);
  close(fd);
}

/// All sixteen, no two alike, as far as the hard limits allow that: for a nice value and a real-time priority that may
/// be 0.
struct Limit {
  __rlimit_resource resource;
  rlimit value;
};
Limit limits[] = {
    {RLIMIT_CPU, {9'000, 9'100}},
    {RLIMIT_FSIZE, {1 << 29, 1 << 30}},
    {RLIMIT_DATA, {1ull << 33, 1ull << 34}},
    {RLIMIT_STACK, {5 << 20, 7 << 20}},
    {RLIMIT_CORE, {0, 4'096}},
    {RLIMIT_RSS, {1ull << 35, 1ull << 36}},
    {RLIMIT_NPROC, {4'321, 5'432}},
    {RLIMIT_NOFILE, {500, 600}},
    {RLIMIT_MEMLOCK, {65'536, 131'072}},
    {RLIMIT_AS, {1ull << 40, 1ull << 41}},
    {RLIMIT_LOCKS, {55, 56}},
    {RLIMIT_SIGPENDING, {66, 67}},
    {RLIMIT_MSGQUEUE, {77'777, 88'888}},
    {RLIMIT_NICE, {3, 4}},
    {RLIMIT_RTPRIO, {1, 2}},
    {RLIMIT_RTTIME, {1'000'000, RLIM_INFINITY}},
};
static_assert(sizeof limits / sizeof *limits == RLIM_NLIMITS);

void set_limits() {
  for (auto& [resource, wanted] : limits) {
    rlimit now;
    CHECK(getrlimit(resource, &now) == 0);
    if (wanted.rlim_max > now.rlim_max) wanted.rlim_max = now.rlim_max;
    if (wanted.rlim_cur > wanted.rlim_max) wanted.rlim_cur = wanted.rlim_max;
    CHECK(setrlimit(resource, &wanted) == 0);
  }
}

constexpr unsigned of_second_thread = ADDR_COMPAT_LAYOUT;
volatile int second_is_set_up = 0;

void* second_thread(void*) {
  CHECK(prctl(PR_SET_TIMERSLACK, 77'777) == 0);
  CHECK(prctl(PR_SET_NAME, "second of two") == 0);
  CHECK(personality(of_second_thread) >= 0);
  __atomic_store_n(&second_is_set_up, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  CHECK_EQUAL(prctl(PR_GET_TIMERSLACK), 77'777);
  CHECK_EQUAL(personality(0xffffffff), of_second_thread);
  char name[16];
  CHECK(prctl(PR_GET_NAME, name) == 0 && strcmp(name, "second of two") == 0);
  return nullptr;
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
  const unsigned inherited_filter = coredump_filter();
  const pid_t child = probe::start([&] {
    probe::wait_for_go();
    CHECK_EQUAL(coredump_filter(), inherited_filter);
  });
  const unsigned filter = inherited_filter ^ 0x4c;
  set_coredump_filter(filter);
  pthread_t second;
  CHECK(pthread_create(&second, nullptr, second_thread, nullptr) == 0);
  probe::await(&second_is_set_up, 1);
  set_limits();
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
  CHECK_EQUAL(coredump_filter(), filter);
  for (const auto& [resource, wanted] : limits) {
    rlimit limit;
    CHECK(getrlimit(resource, &limit) == 0);
    CHECK_EQUAL(limit.rlim_cur, wanted.rlim_cur);
    CHECK_EQUAL(limit.rlim_max, wanted.rlim_max);
  }
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
  CHECK(pthread_join(second, nullptr) == 0);
  probe::expect_child_passed(child);
  return probe::passed();
}
