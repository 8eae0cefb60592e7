// User and group ids, groups, capability sets and securebits, different in two threads; and an ordinary user's task.
// ROOT: changes its credentials
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <pthread.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>

#include "probe.h"

namespace {

struct Capabilities {
  __user_cap_data_struct words[2];
};

Capabilities capabilities() {
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  Capabilities now = {};
  CHECK(syscall(SYS_capget, &header, now.words) == 0);
  return now;
}

void set_capabilities(uint32_t permitted, uint32_t effective, uint32_t inheritable) {
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  Capabilities wanted = {};
  wanted.words[0] = {effective, permitted, inheritable};
  CHECK(syscall(SYS_capset, &header, wanted.words) == 0);
}

struct Identity {
  long ids[8];
  gid_t groups[8];
  int group_count;
  Capabilities sets;
  int securebits;
  int bounding[41], ambient[41];
};

/// What this thread is, by system calls that act on the thread alone (glibc would act on all threads).
Identity identity() {
  Identity now = {};
  uid_t r, e, s;
  syscall(SYS_getresuid, &r, &e, &s);
  now.ids[0] = r, now.ids[1] = e, now.ids[2] = s, now.ids[3] = syscall(SYS_setfsuid, -1);
  syscall(SYS_getresgid, &r, &e, &s);
  now.ids[4] = r, now.ids[5] = e, now.ids[6] = s, now.ids[7] = syscall(SYS_setfsgid, -1);
  now.group_count = static_cast<int>(syscall(SYS_getgroups, 8, now.groups));
  now.sets = capabilities();
  now.securebits = prctl(PR_GET_SECUREBITS);
  for (int cap = 0; cap <= 40; ++cap) {
    now.bounding[cap] = prctl(PR_CAPBSET_READ, cap);
    now.ambient[cap] = prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0);
  }
  return now;
}

void expect_same(const char* who, const Identity& before) {
  const Identity after = identity();
  for (int i = 0; i < 8; ++i) {
    if (before.ids[i] != after.ids[i]) probe::failed("%s: id %d is %ld, was %ld", who, i, after.ids[i], before.ids[i]);
  }
  if (memcmp(&before, &after, sizeof before) != 0) probe::failed("%s: groups, capabilities or securebits changed", who);
}

volatile int started = 0;

void* thread(void*) {
  const gid_t groups[] = {11, 12, 13};
  CHECK(syscall(SYS_setgroups, 3, groups) == 0);
  CHECK(prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP) == 0);
  CHECK(prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT, 0, 0, 0) == 0);
  CHECK(syscall(SYS_setresgid, 1001, 1002, 1003) == 0);
  CHECK(syscall(SYS_setresuid, 2001, 2002, 2003) == 0);
  syscall(SYS_setfsuid, 2001);
  set_capabilities(1 << CAP_CHOWN | 1 << CAP_NET_RAW | 1 << CAP_KILL, 1 << CAP_CHOWN, 1 << CAP_NET_RAW);
  CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0) == 0);
  const Identity before = identity();
  __atomic_add_fetch(&started, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  expect_same("thread", before);
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  const pid_t ordinary = fork();
  if (ordinary == 0) {
    CHECK(setgroups(0, nullptr) == 0 && setresgid(777, 777, 777) == 0 && setresuid(888, 888, 888) == 0);
    const Identity before = identity();
    probe::wait_for_go();
    expect_same("ordinary user", before);
    CHECK(setuid(0) != 0);
    _exit(0);
  }
  pthread_t other;
  CHECK(pthread_create(&other, nullptr, thread, nullptr) == 0);
  probe::await(&started, 1);
  usleep(20'000);
  const Identity before = identity();
  probe::ready();
  probe::wait_for_go();
  expect_same("root", before);
  CHECK(pthread_join(other, nullptr) == 0);
  probe::expect_child_passed(ordinary);
  return probe::passed();
}
