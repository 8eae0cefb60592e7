// Sockets whose files have been renamed or linked since they were bound, as servers do that replace each other without
// a gap: the socket keeps the name that it was bound to, and clients find it under the new one.
// FAIL_RESTORE
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "probe.h"

static sockaddr_un address_of(const char* directory, const char* name) {
  sockaddr_un made = {};
  made.sun_family = AF_UNIX;
  snprintf(made.sun_path, sizeof made.sun_path, "%s%s", directory, name);
  return made;
}

static int bound(int type, const sockaddr_un& address) {
  const int fd = socket(AF_UNIX, type, 0);
  CHECK(fd >= 0 && bind(fd, (const sockaddr*)&address, sizeof address) == 0);
  return fd;
}

static void expect_name(int fd, const char* expected) {
  sockaddr_un name = {};
  socklen_t size = sizeof name;
  CHECK(getsockname(fd, (sockaddr*)&name, &size) == 0);
  CHECK(strcmp(name.sun_path, expected) == 0);
}

static void expect_service(int server, const sockaddr_un& address) {
  const int client = socket(AF_UNIX, SOCK_STREAM, 0);
  CHECK(client >= 0 && connect(client, (const sockaddr*)&address, sizeof address) == 0);
  const int accepted = accept(server, nullptr, nullptr);
  char byte = 0;
  CHECK(accepted >= 0 && write(client, "x", 1) == 1 && read(accepted, &byte, 1) == 1 && byte == 'x');
  CHECK(close(client) == 0 && close(accepted) == 0);
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  char directory[100], other[120];
  snprintf(directory, sizeof directory, "%s/", probe::directory);
  snprintf(other, sizeof other, "%sother/", directory);
  CHECK(mkdir(other, 0755) == 0);

  const auto temporary = address_of(directory, "server.tmp"), final = address_of(directory, "server");
  const int server = bound(SOCK_STREAM, temporary);
  CHECK(listen(server, 4) == 0 && rename(temporary.sun_path, final.sun_path) == 0);
  const int client = socket(AF_UNIX, SOCK_STREAM, 0);
  CHECK(connect(client, (const sockaddr*)&final, sizeof final) == 0);
  const int accepted = accept(server, nullptr, nullptr);
  CHECK(accepted >= 0);

  // Its first name belongs to the next one meanwhile.
  const int next = bound(SOCK_STREAM, temporary);
  CHECK(listen(next, 4) == 0);

  // By a link and the end of the first name, which procfs calls deleted then; in another directory; relative.
  const auto first = address_of(directory, "first"), linked = address_of(directory, "linked");
  const int by_link = bound(SOCK_STREAM, first);
  CHECK(listen(by_link, 4) == 0 && link(first.sun_path, linked.sun_path) == 0 && unlink(first.sun_path) == 0);
  const auto away = address_of(other, "away");
  CHECK(chdir(directory) == 0);
  const int relative = bound(SOCK_STREAM, address_of("", "here"));
  CHECK(listen(relative, 4) == 0 && rename("here", away.sun_path) == 0 && chdir("/") == 0);
  const auto log_before = address_of(directory, "log.tmp"), log_now = address_of(directory, "log");
  const int log = bound(SOCK_DGRAM, log_before);
  CHECK(rename(log_before.sun_path, log_now.sun_path) == 0);
  CHECK(sendto(log, "kept", 4, 0, (const sockaddr*)&log_now, sizeof log_now) == 4);

  probe::ready();
  probe::wait_for_go();

  expect_name(server, temporary.sun_path), expect_name(accepted, temporary.sun_path),
      expect_name(next, temporary.sun_path);
  expect_service(server, final), expect_service(next, temporary);
  CHECK(write(client, "y", 1) == 1);
  char got[8] = {};
  CHECK(read(accepted, got, 1) == 1 && got[0] == 'y');
  expect_name(by_link, first.sun_path), expect_service(by_link, linked);
  expect_name(relative, "here"), expect_service(relative, away);
  expect_name(log, log_before.sun_path);
  CHECK(recv(log, got, sizeof got, MSG_DONTWAIT) == 4 && memcmp(got, "kept", 4) == 0);
  CHECK(sendto(log, "more", 4, 0, (const sockaddr*)&log_now, sizeof log_now) == 4);
  CHECK(recv(log, got, sizeof got, MSG_DONTWAIT) == 4 && memcmp(got, "more", 4) == 0);
  // Nothing else has appeared.
  CHECK(access(first.sun_path, F_OK) == -1 && access(log_before.sun_path, F_OK) == -1);
  return probe::passed();
}
