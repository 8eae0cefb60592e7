// System V shared memory in the system's own IPC namespace: attached for writing and for reading, several times, by a
// child and another user, in parts, with a size that is no whole pages, destroyed while it is attached, locked.
// FAIL_RESTORE
// ROOT: attaches what another user may not
// FILTERS

#include <initializer_list>

#include "shm.h"

namespace {

using shm::attach;

constexpr size_t page = 4096;

int create(key_t key, size_t size, int flags = 0) {
  const int id = shmget(key, size, IPC_CREAT | IPC_EXCL | 0640 | flags);
  CHECK(id >= 0);
  return id;
}

shmid_ds state(int id) {
  shmid_ds found = {};
  CHECK(shmctl(id, IPC_STAT, &found) == 0);
  return found;
}

void expect_state(int id, const shmid_ds& before) {
  const shmid_ds now = state(id);
  CHECK_EQUAL(now.shm_perm.__key, before.shm_perm.__key);
  CHECK_EQUAL(now.shm_perm.mode, before.shm_perm.mode);
  CHECK_EQUAL(now.shm_perm.uid, before.shm_perm.uid);
  CHECK_EQUAL(now.shm_perm.gid, before.shm_perm.gid);
  CHECK_EQUAL(now.shm_segsz, before.shm_segsz);
  CHECK_EQUAL(now.shm_nattch, before.shm_nattch);
}

struct Shared {
  int ready, go;
};

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  auto* shared = probe::shared_memory<Shared>();

  const key_t key = static_cast<key_t>(0x57000000 | (getpid() & 0xffff) | (time(nullptr) & 0xff) << 16);
  const int named = create(key, 4 * page);
  char* const writing = attach(named);
  char* const reading = attach(named, SHM_RDONLY);
  char* const parts = attach(named);
  char* const executable = attach(named, SHM_EXEC);
  for (size_t i = 0; i < 4; ++i) snprintf(writing + i * page, page, "page %zu", i);
  CHECK(munmap(parts + page, page) == 0 && mprotect(parts + 2 * page, page, PROT_NONE) == 0);

  const int destroyed = create(IPC_PRIVATE, 2 * page), odd = create(IPC_PRIVATE, 5000),
            locked = create(IPC_PRIVATE, page);
  char* const doomed = attach(destroyed);
  strcpy(doomed + page, "to the last");
  CHECK(shmctl(destroyed, IPC_RMID, nullptr) == 0);
  char* const tail = attach(odd);
  strcpy(tail + 4990, "the end");
  char* const resident = attach(locked);
  strcpy(resident, "resident");
  CHECK(shmctl(locked, SHM_LOCK, nullptr) == 0);
  const int unattached = create(IPC_PRIVATE, 3 * page);

  const pid_t child = fork();
  if (child == 0) {
    CHECK(shmdt(tail) == 0);
    CHECK(setresgid(12345, 12345, 12345) == 0 && setresuid(12345, 12345, 12345) == 0);
    const int own = create(IPC_PRIVATE, page);
    char* const mine = attach(own);
    strcpy(mine, "of another user");
    CHECK(shmctl(own, IPC_RMID, nullptr) == 0);
    const shmid_ds before = state(own);
    shared->ready = 1;
    probe::await(&shared->go, 1);
    expect_state(own, before);
    CHECK(strcmp(mine, "of another user") == 0);
    CHECK(strcmp(writing + 3 * page, "written by the parent") == 0);
    strcpy(doomed, "written by the child");
    _exit(0);
  }
  probe::await(&shared->ready, 1);
  const shmid_ds before[] = {state(named), state(destroyed), state(odd), state(locked), state(unattached)};

  probe::ready();
  probe::wait_for_go();

  const int ids[] = {named, destroyed, odd, locked, unattached};
  for (size_t i = 0; i < 5; ++i) expect_state(ids[i], before[i]);
  CHECK_EQUAL(shmget(key, 0, 0), named);
  for (size_t i = 0; i < 4; ++i) {
    char text[16];
    snprintf(text, sizeof text, "page %zu", i);
    CHECK(strcmp(writing + i * page, text) == 0 && strcmp(reading + i * page, text) == 0);
    CHECK(strcmp(executable + i * page, text) == 0);
    if (i != 1 && i != 2) CHECK(strcmp(parts + i * page, text) == 0);
  }
  CHECK(mprotect(parts + 2 * page, page, PROT_READ | PROT_WRITE) == 0 && strcmp(parts + 2 * page, "page 2") == 0);
  CHECK(mprotect(reading, page, PROT_READ | PROT_WRITE) != 0 && errno == EACCES);
  CHECK(mprotect(executable, page, PROT_READ | PROT_EXEC) == 0);
  CHECK(strcmp(tail + 4990, "the end") == 0 && strcmp(doomed + page, "to the last") == 0);
  CHECK(strcmp(resident, "resident") == 0);

  strcpy(parts + 3 * page, "written by the parent");
  CHECK(strcmp(reading + 3 * page, "written by the parent") == 0);
  shared->go = 1;
  probe::expect_child_passed(child);
  CHECK(strcmp(doomed, "written by the child") == 0);

  CHECK(shmdt(doomed) == 0);
  shmid_ds gone = {};
  CHECK(shmctl(destroyed, IPC_STAT, &gone) != 0);  // its last user has left
  for (char* attached : {writing, reading, parts, executable, tail, resident}) CHECK(shmdt(attached) == 0);
  CHECK_EQUAL(state(named).shm_nattch, 0);
  for (const int id : {named, odd, locked, unattached}) CHECK(shmctl(id, IPC_RMID, nullptr) == 0);
  return probe::passed();
}
