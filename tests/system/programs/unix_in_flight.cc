// Descriptors and credentials in flight: files, pipes, epolls and sockets in the queues of sockets, also of sockets
// that are in flight themselves, and of a socket in its own queue.
// FAIL_RESTORE
// ROOT: has a process of another user
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "probe.h"

static void send_descriptors(int fd, const char* text, const int* descriptors, size_t count) {
  iovec vector = {(void*)text, strlen(text)};
  alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &vector, message.msg_iovlen = 1;
  message.msg_control = control, message.msg_controllen = CMSG_SPACE(count * sizeof(int));
  cmsghdr* head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET, head->cmsg_type = SCM_RIGHTS, head->cmsg_len = CMSG_LEN(count * sizeof(int));
  memcpy(CMSG_DATA(head), descriptors, count * sizeof(int));
  CHECK(sendmsg(fd, &message, MSG_NOSIGNAL) == (ssize_t)strlen(text));
}

/// Receives exactly this text with so many descriptors.
static void receive(int fd, const char* text, int* descriptors, size_t count, ucred* credentials = nullptr) {
  char got[64] = {};
  iovec vector = {got, sizeof got};
  alignas(cmsghdr) char control[256] = {};
  msghdr message = {};
  message.msg_iov = &vector, message.msg_iovlen = 1;
  message.msg_control = control, message.msg_controllen = sizeof control;
  const ssize_t length = recvmsg(fd, &message, MSG_DONTWAIT);
  CHECK_EQUAL(length, (ssize_t)strlen(text));
  CHECK(memcmp(got, text, strlen(text)) == 0);
  size_t received = 0;
  bool has_credentials = false;
  for (cmsghdr* head = CMSG_FIRSTHDR(&message); head != nullptr; head = CMSG_NXTHDR(&message, head)) {
    if (head->cmsg_type == SCM_RIGHTS) {
      received = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      CHECK_EQUAL(received, count);
      memcpy(descriptors, CMSG_DATA(head), received * sizeof(int));
    } else if (head->cmsg_type == SCM_CREDENTIALS && credentials != nullptr) {
      memcpy(credentials, CMSG_DATA(head), sizeof *credentials);
      has_credentials = true;
    }
  }
  CHECK_EQUAL(received, count);
  CHECK(has_credentials == (credentials != nullptr));
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  int stream[2], datagram[2], inner[2], ends[2], loop[2], only[2], credited[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, stream) == 0 && socketpair(AF_UNIX, SOCK_DGRAM, 0, datagram) == 0);
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, inner) == 0 && socketpair(AF_UNIX, SOCK_SEQPACKET, 0, loop) == 0);
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, only) == 0 && pipe(ends) == 0);
  char path[4096];
  snprintf(path, sizeof path, "%s/file", probe::directory);
  const int file = open(path, O_RDWR | O_CREAT, 0600);
  CHECK(file >= 0 && write(file, "0123456789", 10) == 10 && lseek(file, 4, SEEK_SET) == 4);
  CHECK(unlink(path) == 0);

  // A stream: bytes, bytes with two descriptors, bytes, bytes with one.
  const int pair_of_them[2] = {file, ends[0]};
  CHECK(send(stream[0], "plain", 5, 0) == 5);
  send_descriptors(stream[0], "two", pair_of_them, 2);
  CHECK(send(stream[0], "between", 7, 0) == 7);
  send_descriptors(stream[0], "one", &ends[0], 1);
  // What is open nowhere else: an end of a pipe in a socket that is in flight itself, next to its other end.
  send_descriptors(inner[0], "deep", &ends[1], 1);
  CHECK(close(ends[1]) == 0);
  send_descriptors(datagram[0], "inner", &inner[1], 1);
  CHECK(close(inner[1]) == 0);
  send_descriptors(only[0], "both ends", only, 2);  // of itself
  send_descriptors(loop[0], "loop", &loop[0], 1);
  CHECK(close(loop[0]) == 0);

  // Twice the same epoll, which waits for the very socket that it is under way through, and for a pipe.
  int polled[2], watched[2];
  CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, polled) == 0 && pipe(watched) == 0);
  const int epoll = epoll_create1(0);
  const auto watch = [&](int fd) {
    epoll_event event = {};
    event.events = EPOLLIN, event.data.fd = fd;
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
  };
  watch(polled[1]), watch(watched[0]);
  send_descriptors(polled[0], "epoll", &epoll, 1);
  send_descriptors(polled[0], "again", &epoll, 1);
  CHECK(close(epoll) == 0);

  // Credentials: of this process and of a child, which is another user; and none, from before they were asked for.
  CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, credited) == 0);
  CHECK(send(credited[0], "early", 5, 0) == 5);
  const int on = 1;
  CHECK(setsockopt(credited[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
  CHECK(send(credited[0], "mine", 4, 0) == 4);
  int* said = probe::shared_memory<int>();
  const pid_t child = fork();
  if (child == 0) {
    CHECK(setresgid(1234, 1234, 1234) == 0 && setresuid(4321, 4321, 4321) == 0);
    CHECK(send(credited[0], "child", 5, 0) == 5);
    __atomic_store_n(said, 1, __ATOMIC_RELEASE);
    probe::wait_for_go();
    // Whatever the parent takes from a queue that we share is gone for us.
    _exit(0);
  }
  probe::await(said, 1);
  probe::ready();
  probe::wait_for_go();

  int got[8];
  char text[16] = {};
  receive(stream[1], "plaintwo", got, 2);  // the kernel joins what comes before descriptors with them
  CHECK(lseek(got[0], 0, SEEK_CUR) == 4 && lseek(got[0], 1, SEEK_CUR) == 5);
  CHECK(lseek(file, 0, SEEK_CUR) == 5);  // the same description
  const int first_end = got[1];
  receive(stream[1], "betweenone", got, 1);
  CHECK(syscall(SYS_kcmp, getpid(), getpid(), 0 /* KCMP_FILE */, first_end, got[0]) == 0);
  CHECK(syscall(SYS_kcmp, getpid(), getpid(), 0, first_end, ends[0]) == 0);

  receive(datagram[1], "inner", got, 1);
  const int inner_end = got[0];
  receive(inner_end, "deep", got, 1);
  CHECK(write(got[0], "through", 7) == 7);
  CHECK(read(ends[0], text, sizeof text) == 7 && memcmp(text, "through", 7) == 0);
  CHECK(send(inner[0], "alive", 5, 0) == 5);
  receive(inner_end, "alive", got, 0);

  receive(only[1], "both ends", got, 2);
  CHECK(send(got[0], "own", 3, 0) == 3);
  receive(got[1], "own", nullptr, 0);
  receive(loop[1], "loop", got, 1);
  CHECK(send(got[0], "closed", 6, 0) == 6);
  receive(loop[1], "closed", nullptr, 0);

  receive(polled[1], "epoll", got, 1);
  epoll_event events[2];
  CHECK(epoll_wait(got[0], events, 2, 0) == 1 && events[0].data.fd == polled[1]);
  receive(polled[1], "again", got + 1, 1);
  CHECK(syscall(SYS_kcmp, getpid(), getpid(), 0 /* KCMP_FILE */, got[0], got[1]) == 0);
  CHECK(write(watched[1], "x", 1) == 1);
  CHECK(epoll_wait(got[1], events, 2, 0) == 1 && events[0].data.fd == watched[0]);

  ucred credentials = {};
  receive(credited[1], "early", nullptr, 0, &credentials);
  CHECK_EQUAL(credentials.pid, 0);
  receive(credited[1], "mine", nullptr, 0, &credentials);
  CHECK(credentials.pid == getpid() && credentials.uid == getuid() && credentials.gid == getgid());
  receive(credited[1], "child", nullptr, 0, &credentials);
  CHECK(credentials.pid == child && credentials.uid == 4321 && credentials.gid == 1234);
  probe::expect_child_passed(child);
  return probe::passed();
}
