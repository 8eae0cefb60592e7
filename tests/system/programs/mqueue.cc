// POSIX message queues: with a name and unlinked, empty and full, messages of several priorities in their order, open
// in several ways, of another user, with notifications, and with somebody asleep in mq_receive.
// FAIL_RESTORE
// ROOT: has a process of another user
#include <mqueue.h>

#include <initializer_list>

#include "probe.h"

namespace {

constexpr long largest = 64;
char names[6][256];

const char* name(int which) {
  // Queues are the system's: the directory's name is unique.
  snprintf(names[which], sizeof names[which], "/%s.%d", strrchr(probe::directory, '/') + 1, which);
  return names[which];
}

mqd_t create(int which, int flags, long capacity) {
  mq_attr attributes = {};
  attributes.mq_maxmsg = capacity, attributes.mq_msgsize = largest;
  mq_unlink(name(which));
  const mqd_t queue = mq_open(name(which), flags | O_CREAT | O_EXCL, 0620, &attributes);
  CHECK(queue >= 0);
  return queue;
}

void send(mqd_t queue, const char* text, unsigned priority) {
  CHECK(mq_send(queue, text, strlen(text), priority) == 0);
}

void expect(mqd_t queue, const char* text, unsigned priority) {
  char bytes[largest];
  unsigned found = 0;
  const ssize_t length = mq_receive(queue, bytes, sizeof bytes, &found);
  CHECK_EQUAL(length, (ssize_t)strlen(text));
  CHECK(memcmp(bytes, text, strlen(text)) == 0);
  CHECK_EQUAL(found, priority);
}

void expect_attributes(mqd_t queue, long flags, long capacity, long messages) {
  mq_attr now = {};
  CHECK(mq_getattr(queue, &now) == 0);
  CHECK_EQUAL(now.mq_flags, flags);
  CHECK_EQUAL(now.mq_maxmsg, capacity);
  CHECK_EQUAL(now.mq_msgsize, largest);
  CHECK_EQUAL(now.mq_curmsgs, messages);
}

volatile sig_atomic_t notified, code;
void on_notification(int, siginfo_t* info, void*) {
  ++notified;
  code = info->si_code;
}

struct Shared {
  int ready, received;
};

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  umask(0);
  auto* shared = probe::shared_memory<Shared>();

  const mqd_t writing = create(0, O_WRONLY | O_NONBLOCK, 5);
  send(writing, "third", 3), send(writing, "last", 0), send(writing, "fourth", 3), send(writing, "first", 32767);
  const mqd_t reading = mq_open(name(0), O_RDONLY);
  CHECK(reading >= 0 && fcntl(reading, F_SETFD, 0) == 0);

  const mqd_t full = create(1, O_RDWR, 3);
  send(full, "a", 1), send(full, "", 1), send(full, "c", 1);
  CHECK(mq_unlink(name(1)) == 0);
  const mqd_t namesake = create(1, O_RDWR, 2);
  send(namesake, "another of the same name", 7);
  CHECK(mq_unlink(name(1)) == 0);

  struct sigaction action = {};
  action.sa_sigaction = on_notification, action.sa_flags = SA_SIGINFO | SA_RESTART;
  CHECK(sigaction(SIGRTMIN + 1, &action, nullptr) == 0);
  const mqd_t announced = create(2, O_RDWR, 4);
  struct sigevent event = {};
  event.sigev_notify = SIGEV_SIGNAL, event.sigev_signo = SIGRTMIN + 1;
  CHECK(mq_notify(announced, &event) == 0);
  const mqd_t claimed = create(3, O_RDWR, 4);
  CHECK(mq_unlink(name(3)) == 0);
  event.sigev_notify = SIGEV_NONE;
  CHECK(mq_notify(claimed, &event) == 0);

  const mqd_t awaited = create(4, O_RDWR, 4);
  const pid_t child = fork();
  if (child == 0) {
    CHECK(setresgid(12345, 12345, 12345) == 0 && setresuid(12345, 12345, 12345) == 0);
    const mqd_t own = create(5, O_RDWR, 2);
    send(own, "mine", 9);
    event.sigev_notify = SIGEV_SIGNAL;
    CHECK(mq_notify(claimed, &event) != 0 && errno == EBUSY);
    shared->ready = 1;
    expect(awaited, "wake up", 5);
    CHECK(mq_notify(claimed, &event) != 0 && errno == EBUSY);
    expect_attributes(own, 0, 2, 1);
    expect(own, "mine", 9);
    struct stat about;
    CHECK(fstat(own, &about) == 0);
    CHECK_EQUAL(about.st_uid, 12345);
    CHECK_EQUAL(about.st_mode & 07777, 0620);
    send(announced, "news", 0);
    CHECK(mq_unlink(name(5)) == 0);
    _exit(0);
  }
  probe::await(&shared->ready, 1);

  probe::ready();
  probe::wait_for_go();

  expect_attributes(writing, O_NONBLOCK, 5, 4);
  expect_attributes(reading, 0, 5, 4);
  CHECK_EQUAL(fcntl(writing, F_GETFD), FD_CLOEXEC);
  CHECK_EQUAL(fcntl(reading, F_GETFD), 0);
  CHECK(mq_send(reading, "x", 1, 0) != 0 && errno == EBADF);
  const mqd_t again = mq_open(name(0), O_RDONLY | O_NONBLOCK);
  CHECK(again >= 0);
  expect(reading, "first", 32767), expect(again, "third", 3);
  send(writing, "fifth", 3);
  expect(reading, "fourth", 3), expect(reading, "fifth", 3), expect(reading, "last", 0);
  expect_attributes(again, O_NONBLOCK, 5, 0);

  struct stat one, other;
  CHECK(fstat(full, &one) == 0 && fstat(namesake, &other) == 0);
  CHECK_EQUAL(one.st_nlink, 0);
  CHECK(one.st_ino != other.st_ino);
  CHECK(mq_open(name(1), O_RDONLY) < 0 && errno == ENOENT);
  expect_attributes(full, 0, 3, 3);
  expect(full, "a", 1), expect(full, "", 1), expect(full, "c", 1);
  expect(namesake, "another of the same name", 7);

  CHECK_EQUAL(notified, 0);
  send(awaited, "wake up", 5);
  probe::expect_child_passed(child);
  while (notified == 0) usleep(1000);
  CHECK_EQUAL(notified, 1);
  CHECK_EQUAL(code, SI_MESGQ);
  expect(announced, "news", 0);
  CHECK(mq_notify(claimed, nullptr) == 0);  // ours to take back
  event.sigev_notify = SIGEV_NONE;
  CHECK(mq_notify(claimed, &event) == 0);
  for (const int which : {0, 2, 4}) CHECK(mq_unlink(name(which)) == 0);
  return probe::passed();
}
