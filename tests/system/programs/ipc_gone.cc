// What would outlive the tree is gone when it is restored: a message queue and a System V segment are made again, under
// the same name, id and key.
// FAIL_RESTORE
// ROOT: gives a queue away
#include <mqueue.h>
#include <sys/ipc.h>
#include <sys/shm.h>

#include "probe.h"

int main(int argc, char** argv) {
  if (argc == 4 && strcmp(argv[1], "--remove") == 0) {  // between dump and restore
    const int id = shmget(static_cast<key_t>(strtol(argv[3], nullptr, 10)), 0, 0);
    return mq_unlink(argv[2]) == 0 && id >= 0 && shmctl(id, IPC_RMID, nullptr) == 0 ? 0 : 1;
  }
  probe::begin(argc, argv);
  char name[256], path[4096];
  snprintf(name, sizeof name, "/%s", strrchr(probe::directory, '/') + 1);
  const key_t key = static_cast<key_t>(0x58000000 | (getpid() & 0xffff) | (time(nullptr) & 0xff) << 16);
  mq_attr attributes = {};
  attributes.mq_maxmsg = 3, attributes.mq_msgsize = 16;
  mq_unlink(name);
  const mqd_t queue = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0604, &attributes);
  CHECK(queue >= 0 && fchmod(queue, 0604) == 0 && fchown(queue, 12, 34) == 0);
  CHECK(mq_send(queue, "second", 6, 1) == 0 && mq_send(queue, "first", 5, 2) == 0);
  const int id = shmget(key, 10000, IPC_CREAT | IPC_EXCL | 0606);
  CHECK(id >= 0);
  char* const memory = static_cast<char*>(shmat(id, nullptr, 0));
  CHECK(memory != reinterpret_cast<char*>(-1));
  strcpy(memory + 9000, "content");
  shmid_ds owner = {};
  CHECK(shmctl(id, IPC_STAT, &owner) == 0);
  owner.shm_perm.uid = 12, owner.shm_perm.gid = 34;
  CHECK(shmctl(id, IPC_SET, &owner) == 0);

  char self[4096] = {};
  CHECK(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
  snprintf(path, sizeof path, "%s/between", probe::directory);
  FILE* const script = fopen(path, "w");
  CHECK(script != nullptr && fprintf(script, "exec '%s' --remove '%s' %d\n", self, name, key) > 0);
  CHECK(fclose(script) == 0);

  probe::ready();
  probe::wait_for_go();

  struct stat about;
  CHECK(fstat(queue, &about) == 0);
  CHECK_EQUAL(about.st_mode & 07777, 0604);
  CHECK_EQUAL(about.st_uid, 12);
  CHECK_EQUAL(about.st_gid, 34);
  const mqd_t again = mq_open(name, O_RDONLY);
  CHECK(again >= 0);
  char bytes[16];
  CHECK(mq_receive(again, bytes, sizeof bytes, nullptr) == 5 && memcmp(bytes, "first", 5) == 0);
  CHECK(mq_receive(queue, bytes, sizeof bytes, nullptr) == 6 && memcmp(bytes, "second", 6) == 0);

  shmid_ds now = {};
  CHECK_EQUAL(shmget(key, 0, 0), id);
  CHECK(shmctl(id, IPC_STAT, &now) == 0);
  CHECK_EQUAL(now.shm_segsz, 10000);
  CHECK_EQUAL(now.shm_perm.uid, 12);
  CHECK_EQUAL(now.shm_perm.gid, 34);
  CHECK_EQUAL(now.shm_perm.mode, 0606);
  CHECK_EQUAL(now.shm_nattch, 1);
  CHECK(memory[0] == 0 && strcmp(memory + 9000, "content") == 0);
  CHECK(mq_unlink(name) == 0 && shmctl(id, IPC_RMID, nullptr) == 0);
  return probe::passed();
}
