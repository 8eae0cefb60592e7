// SO_PEERCRED of accepted connections, of one that waits to be accepted, and of pairs made by other users; who owns a
// socket. The process that it names is the one that makes the connection anew: only the ids are compared.
// ROOT: takes other credentials
// FAIL_RESTORE
#include <sys/socket.h>
#include <sys/un.h>

#include "probe.h"

static void expect_peer(int fd, uid_t uid, gid_t gid) {
  ucred peer = {};
  socklen_t size = sizeof peer;
  CHECK(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0);
  CHECK_EQUAL(peer.uid, uid);
  CHECK_EQUAL(peer.gid, gid);
}

static void become(uid_t uid, gid_t gid) {
  CHECK(syscall(SYS_setresgid, -1, gid, -1) == 0 && syscall(SYS_setresuid, -1, uid, -1) == 0);
}
static void become_root() { CHECK(syscall(SYS_setresuid, -1, 0, -1) == 0 && syscall(SYS_setresgid, -1, 0, -1) == 0); }

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  sockaddr_un name = {};
  name.sun_family = AF_UNIX;
  snprintf(name.sun_path, sizeof name.sun_path, "%s/server", probe::directory);
  const int server = socket(AF_UNIX, SOCK_STREAM, 0);
  CHECK(server >= 0 && bind(server, (const sockaddr*)&name, sizeof name) == 0 && chmod(name.sun_path, 0777) == 0);
  become(2001, 2002);
  CHECK(listen(server, 4) == 0);
  become_root(), become(3001, 3002);
  const int client = socket(AF_UNIX, SOCK_STREAM, 0), waiting = socket(AF_UNIX, SOCK_STREAM, 0);
  CHECK(connect(client, (const sockaddr*)&name, sizeof name) == 0);
  CHECK(connect(waiting, (const sockaddr*)&name, sizeof name) == 0);
  int pair[2];
  CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
  become_root();
  const int accepted = accept(server, nullptr, nullptr);
  CHECK(accepted >= 0 && chmod(name.sun_path, 0600) == 0);
  probe::ready();
  probe::wait_for_go();

  expect_peer(client, 2001, 2002), expect_peer(waiting, 2001, 2002), expect_peer(accepted, 3001, 3002);
  expect_peer(pair[0], 3001, 3002), expect_peer(pair[1], 3001, 3002);
  expect_peer(accept(server, nullptr, nullptr), 3001, 3002);
  struct stat about = {};
  CHECK(fstat(client, &about) == 0);
  CHECK(about.st_uid == 3001 && about.st_gid == 3002);
  CHECK(geteuid() == 0 && getegid() == 0);
  return probe::passed();
}
