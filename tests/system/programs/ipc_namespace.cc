// An IPC namespace of the tree's own, with all that is in it: semaphores (also one that somebody waits for), queues
// with messages of several types, segments that are attached and such that nobody has attached, POSIX message queues,
// and limits. All ids are in use outside of it as well.
// FAIL_RESTORE
// ROOT: makes an IPC namespace
#include <mqueue.h>
#include <sched.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

#include "probe.h"

namespace {

struct Letter {
  long type;
  char text[32];
};

void send(int queue, long type, const char* text) {
  Letter letter = {type, {}};
  strcpy(letter.text, text);
  CHECK(msgsnd(queue, &letter, strlen(text), 0) == 0);
}

void receive(int queue, long wanted, long type, const char* text) {
  Letter letter = {};
  CHECK_EQUAL(msgrcv(queue, &letter, sizeof letter.text, wanted, IPC_NOWAIT), (ssize_t)strlen(text));
  CHECK_EQUAL(letter.type, type);
  CHECK(strcmp(letter.text, text) == 0);
}

void set_limit(const char* path, const char* value) {
  const int fd = open(path, O_WRONLY);
  CHECK(fd >= 0 && write(fd, value, strlen(value)) == (ssize_t)strlen(value) && close(fd) == 0);
}

void expect_limit(const char* path, const char* value) {
  char text[64] = {};
  const int fd = open(path, O_RDONLY);
  CHECK(fd >= 0 && read(fd, text, sizeof text - 1) > 0 && close(fd) == 0);
  CHECK(strncmp(text, value, strlen(value)) == 0);
}

void change(int set, unsigned short index, short by) {
  sembuf operation = {index, by, 0};
  int done = 0;
  while ((done = semop(set, &operation, 1)) != 0 && errno == EINTR) continue;  // as after a stop and continue
  CHECK_EQUAL(done, 0);
}

struct Shared {
  int ready, woken;
};

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  CHECK(unshare(CLONE_NEWIPC) == 0);
  set_limit("/proc/sys/kernel/msgmnb", "20000");
  set_limit("/proc/sys/kernel/sem", "100 3200 50 77");
  set_limit("/proc/sys/kernel/shmmax", "123456789");
  set_limit("/proc/sys/fs/mqueue/msg_default", "7");
  auto* shared = probe::shared_memory<Shared>();

  const int passing = semget(IPC_PRIVATE, 1, 0600);  // so that ids are not those of a new namespace
  const int set = semget(0x1234, 5, IPC_CREAT | 0640), empty = semget(IPC_PRIVATE, 1, 0600);
  CHECK(passing >= 0 && set > passing && empty > set && semctl(passing, 0, IPC_RMID) == 0);
  unsigned short values[] = {1, 0, 32767, 7, 0};
  CHECK(semctl(set, 0, SETALL, values) == 0);
  semid_ds of_set = {};
  CHECK(semctl(set, 0, IPC_STAT, &of_set) == 0);
  of_set.sem_perm.uid = 12, of_set.sem_perm.gid = 34;
  CHECK(semctl(set, 0, IPC_SET, &of_set) == 0);

  const int queue = msgget(0x1235, IPC_CREAT | 0604), narrow = msgget(IPC_PRIVATE, 0600);
  CHECK(queue >= 0 && narrow > queue);
  send(queue, 3, "first"), send(queue, 1, "second"), send(queue, 3, ""), send(queue, 1L << 40, "last");
  send(narrow, 1, "more than it takes by now");
  msqid_ds of_queue = {};
  CHECK(msgctl(narrow, IPC_STAT, &of_queue) == 0);
  CHECK_EQUAL(of_queue.msg_qbytes, 20000);
  of_queue.msg_qbytes = 10;
  CHECK(msgctl(narrow, IPC_SET, &of_queue) == 0);

  const int attached = shmget(0x1236, 10000, IPC_CREAT | 0600), idle = shmget(0x1237, 9000, IPC_CREAT | 0606);
  const int doomed = shmget(IPC_PRIVATE, 4096, 0600);
  char* const memory = static_cast<char*>(shmat(attached, nullptr, 0));
  char* const other = static_cast<char*>(shmat(idle, nullptr, 0));
  char* const last = static_cast<char*>(shmat(doomed, nullptr, 0));
  strcpy(memory + 9000, "attached"), strcpy(other + 8900, "idle"), strcpy(last, "doomed");
  CHECK(shmdt(other) == 0 && shmctl(doomed, IPC_RMID, nullptr) == 0);

  mq_attr attributes = {};
  attributes.mq_maxmsg = 3, attributes.mq_msgsize = 16;
  const mqd_t posix = mq_open("/of-the-namespace", O_RDWR | O_CREAT | O_EXCL, 0600, &attributes);
  CHECK(posix >= 0 && mq_send(posix, "message", 7, 1) == 0);

  const pid_t child = fork();
  if (child == 0) {
    shared->ready = 1;
    change(set, 4, -1);
    CHECK(strcmp(memory + 9000, "attached") == 0);
    shared->woken = 1;
    _exit(0);
  }
  probe::await(&shared->ready, 1);

  probe::ready();
  probe::wait_for_go();

  expect_limit("/proc/sys/kernel/msgmnb", "20000\n");
  expect_limit("/proc/sys/kernel/sem", "100\t3200\t50\t77\n");
  expect_limit("/proc/sys/kernel/shmmax", "123456789\n");
  expect_limit("/proc/sys/fs/mqueue/msg_default", "7\n");

  CHECK_EQUAL(semget(0x1234, 0, 0), set);
  unsigned short now[5] = {};
  CHECK(semctl(set, 0, GETALL, now) == 0);
  CHECK(memcmp(now, values, sizeof now) == 0);
  CHECK(semctl(set, 0, IPC_STAT, &of_set) == 0);
  CHECK_EQUAL(of_set.sem_perm.uid, 12);
  CHECK_EQUAL(of_set.sem_perm.gid, 34);
  CHECK_EQUAL(of_set.sem_perm.mode, 0640);
  CHECK_EQUAL(semctl(empty, 0, GETVAL), 0);
  CHECK(semctl(passing, 0, GETVAL) < 0);

  CHECK_EQUAL(msgget(0x1235, 0), queue);
  receive(queue, 1, 1, "second");
  receive(queue, 0, 3, "first");
  receive(queue, -5, 3, "");
  receive(queue, 0, 1L << 40, "last");
  CHECK(msgctl(narrow, IPC_STAT, &of_queue) == 0);
  CHECK_EQUAL(of_queue.msg_qbytes, 10);
  receive(narrow, 0, 1, "more than it takes by now");

  CHECK_EQUAL(shmget(0x1236, 0, 0), attached);
  CHECK_EQUAL(shmget(0x1237, 0, 0), idle);
  CHECK(strcmp(memory + 9000, "attached") == 0 && strcmp(last, "doomed") == 0);
  char* const again = static_cast<char*>(shmat(idle, nullptr, 0));
  CHECK(strcmp(again + 8900, "idle") == 0);
  shmid_ds of_segment = {};
  CHECK(shmctl(idle, IPC_STAT, &of_segment) == 0);
  CHECK_EQUAL(of_segment.shm_segsz, 9000);
  CHECK_EQUAL(of_segment.shm_perm.mode, 0606);
  CHECK_EQUAL(shmctl(doomed, IPC_STAT, &of_segment), 0);
  CHECK_EQUAL(of_segment.shm_nattch, 2);

  char bytes[16];
  const mqd_t posix_again = mq_open("/of-the-namespace", O_RDONLY);
  CHECK(posix_again >= 0 && mq_receive(posix_again, bytes, sizeof bytes, nullptr) == 7);

  CHECK_EQUAL(shared->woken, 0);
  change(set, 4, 1);
  probe::expect_child_passed(child);
  return probe::passed();
}
