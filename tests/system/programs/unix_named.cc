// Unix sockets with names: paths (absolute, relative, unlinked, with another file in their place), abstract names,
// listening ones with connections that wait to be accepted, accepted ones, datagrams from several senders.
// FAIL_RESTORE
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "probe.h"

struct Address {
  sockaddr_un name;
  socklen_t size;
};

static Address path_address(const char* format, ...) {
  Address made = {};
  made.name.sun_family = AF_UNIX;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(made.name.sun_path, sizeof made.name.sun_path, format, arguments);
  va_end(arguments);
  made.size = (socklen_t)(offsetof(sockaddr_un, sun_path) + strlen(made.name.sun_path) + 1);
  return made;
}

static Address abstract_address(const char* tag) {
  Address made = {};
  made.name.sun_family = AF_UNIX;
  const int length = snprintf(made.name.sun_path + 1, sizeof made.name.sun_path - 1, "%s.%s", probe::directory, tag);
  made.size = (socklen_t)(offsetof(sockaddr_un, sun_path) + 1 + (size_t)length);
  return made;
}

static int bound(int type, const Address& address) {
  const int fd = socket(AF_UNIX, type, 0);
  CHECK(fd >= 0 && bind(fd, (const sockaddr*)&address.name, address.size) == 0);
  return fd;
}

static int connected(int type, const Address& address) {
  const int fd = socket(AF_UNIX, type, 0);
  CHECK(fd >= 0 && connect(fd, (const sockaddr*)&address.name, address.size) == 0);
  return fd;
}

static void expect_name(int fd, const Address& expected, int (*get)(int, sockaddr*, socklen_t*) = getsockname) {
  Address got = {};
  got.size = sizeof got.name;
  CHECK(get(fd, (sockaddr*)&got.name, &got.size) == 0);
  CHECK_EQUAL(got.size, expected.size);
  CHECK(memcmp(&got.name, &expected.name, expected.size) == 0);
}

static void expect(int fd, const char* text, const Address* sender = nullptr) {
  char got[256] = {};
  Address from = {};
  from.size = sizeof from.name;
  const ssize_t count = recvfrom(fd, got, sizeof got - 1, MSG_DONTWAIT, (sockaddr*)&from.name, &from.size);
  CHECK_EQUAL(count, (ssize_t)strlen(text));
  CHECK(memcmp(got, text, strlen(text)) == 0);
  if (sender == nullptr) return;
  CHECK_EQUAL(from.size, sender->size);
  CHECK(memcmp(&from.name, &sender->name, sender->size) == 0);
}

static void send_to(int fd, const Address& to, const char* text) {
  CHECK(sendto(fd, text, strlen(text), MSG_NOSIGNAL, (const sockaddr*)&to.name, to.size) == (ssize_t)strlen(text));
}
static void say(int fd, const char* text) {
  CHECK(send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text));
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  char working[4096];
  snprintf(working, sizeof working, "%s/cwd", probe::directory);
  CHECK(mkdir(working, 0755) == 0);

  // Listening: one accepted connection, three that wait, in order; a path with its own mode and owner.
  const auto server_path = path_address("%s/server", probe::directory);
  const int server = bound(SOCK_STREAM, server_path);
  CHECK(chmod(server_path.name.sun_path, 0640) == 0 && listen(server, 8) == 0);
  const int client = connected(SOCK_STREAM, server_path);
  const int accepted = accept(server, nullptr, nullptr);
  CHECK(accepted >= 0);
  say(client, "request"), say(accepted, "response");
  const auto client_name = abstract_address("client");
  const int waiting[3] = {connected(SOCK_STREAM, server_path), bound(SOCK_STREAM, client_name),
                          connected(SOCK_STREAM, server_path)};
  // The order of waiting: 0, 2, 1.
  CHECK(connect(waiting[1], (const sockaddr*)&server_path.name, server_path.size) == 0);
  CHECK(shutdown(waiting[2], SHUT_WR) == 0);

  // Two accepted ones whose listening socket is gone; an abstract listening one of packets.
  const auto old_name = abstract_address("old");
  const int old_server = bound(SOCK_SEQPACKET, old_name);
  CHECK(listen(old_server, 2) == 0);
  const int old_clients[2] = {connected(SOCK_SEQPACKET, old_name), connected(SOCK_SEQPACKET, old_name)};
  const int old_accepted[2] = {accept(old_server, nullptr, nullptr), accept(old_server, nullptr, nullptr)};
  say(old_clients[1], "to the old");
  CHECK(close(old_server) == 0);
  const auto packets_name = abstract_address("packets");
  const int packets = bound(SOCK_SEQPACKET, packets_name);
  CHECK(listen(packets, 1) == 0);

  // The listening socket's file is gone, and another socket has its name.
  const auto twice_path = path_address("%s/twice", probe::directory);
  const int unlinked = bound(SOCK_STREAM, twice_path);
  CHECK(listen(unlinked, 3) == 0);
  const int unlinked_client = connected(SOCK_STREAM, twice_path);
  CHECK(unlink(twice_path.name.sun_path) == 0);
  const int second = bound(SOCK_STREAM, twice_path);
  CHECK(listen(second, 3) == 0);

  // Their files are gone, and so are the directories that those were in: a listening one with a connection, one whose
  // peer was closed, and a sender that was.
  char gone[4096], gone_inner[4200];
  snprintf(gone, sizeof gone, "%s/gone", probe::directory), snprintf(gone_inner, sizeof gone_inner, "%s/inner", gone);
  CHECK(mkdir(gone, 0755) == 0 && mkdir(gone_inner, 0755) == 0);
  const auto homeless_path = path_address("%s/inner/listener", gone);
  const int homeless = bound(SOCK_STREAM, homeless_path);
  CHECK(listen(homeless, 2) == 0);
  const int homeless_client = connected(SOCK_STREAM, homeless_path), half = connected(SOCK_STREAM, homeless_path);
  const int homeless_accepted = accept(homeless, nullptr, nullptr);
  CHECK(close(accept(homeless, nullptr, nullptr)) == 0);
  const auto mailbox_path = path_address("%s/mailbox", gone), stranger_path = path_address("%s/stranger", gone);
  const int mailbox = bound(SOCK_DGRAM, mailbox_path), stranger = bound(SOCK_DGRAM, stranger_path);
  send_to(stranger, mailbox_path, "from nowhere");
  CHECK(close(stranger) == 0);
  CHECK(unlink(homeless_path.name.sun_path) == 0 && unlink(mailbox_path.name.sun_path) == 0);
  CHECK(unlink(stranger_path.name.sun_path) == 0);
  CHECK(rmdir(gone_inner) == 0 && rmdir(gone) == 0);

  // Relative, from a directory that is not the working directory any more, and from the one that is.
  const int home = open("/", O_RDONLY | O_DIRECTORY);
  CHECK(home >= 0 && chdir(working) == 0);
  const auto relative = path_address("relative"), below = path_address("../cwd/below");
  const int here = bound(SOCK_DGRAM, relative), there = bound(SOCK_DGRAM, below);
  const auto relative_from_elsewhere = path_address("%s/relative", working);

  // Datagrams: several senders, named and not, one of them closed, one connected.
  const auto log_name = path_address("%s/log", probe::directory);
  const int log = bound(SOCK_DGRAM, log_name);
  const auto named = abstract_address("sender"), dead_name = path_address("%s/dead", probe::directory);
  const int sender = bound(SOCK_DGRAM, named), nameless = socket(AF_UNIX, SOCK_DGRAM, 0);
  const int dead = bound(SOCK_DGRAM, dead_name);
  const int logger = connected(SOCK_DGRAM, log_name);
  send_to(sender, log_name, "named"), send_to(nameless, log_name, "nameless"), send_to(dead, log_name, "dead");
  say(logger, "connected"), send_to(sender, log_name, "named again");
  CHECK(close(dead) == 0);
  // Connected to each other by name, with more in the queue than anybody else may put there.
  const auto left_name = abstract_address("left"), right_name = abstract_address("right");
  const int left = bound(SOCK_DGRAM, left_name), right = bound(SOCK_DGRAM, right_name);
  send_to(sender, left_name, "before");
  CHECK(connect(left, (const sockaddr*)&right_name.name, right_name.size) == 0);
  CHECK(connect(right, (const sockaddr*)&left_name.name, left_name.size) == 0);
  for (int i = 0; i < 20; ++i) say(right, "many");
  // One that has no name itself and whose peer is closed.
  const auto lost_name = abstract_address("lost");
  const int lost = bound(SOCK_DGRAM, lost_name);
  const int widow = connected(SOCK_DGRAM, lost_name);
  CHECK(close(lost) == 0);
  // Not listening, not connected, bound or not.
  const auto idle_path = path_address("%s/idle", probe::directory);
  const int idle = bound(SOCK_STREAM, idle_path);
  const auto idle_packets_name = abstract_address("idle packets");
  const int idle_packets = bound(SOCK_SEQPACKET, idle_packets_name), unbound = socket(AF_UNIX, SOCK_SEQPACKET, 0);
  CHECK(unbound >= 0);

  probe::ready();
  probe::wait_for_go();

  struct stat about = {};
  CHECK(stat(server_path.name.sun_path, &about) == 0 && S_ISSOCK(about.st_mode));
  CHECK_EQUAL(about.st_mode & 07777, 0640);
  expect_name(server, server_path), expect_name(accepted, server_path), expect_name(client, server_path, getpeername);
  expect(accepted, "request"), expect(client, "response");
  say(client, "more"), expect(accepted, "more");
  const int first = accept(server, nullptr, nullptr);
  say(first, "you waited"), expect(waiting[0], "you waited");
  const int third = accept(server, nullptr, nullptr);
  CHECK_EQUAL(recv(third, working, 1, MSG_DONTWAIT), 0);  // shut down
  say(third, "third"), expect(waiting[2], "third");
  Address from = {};
  from.size = sizeof from.name;
  const int fourth = accept(server, (sockaddr*)&from.name, &from.size);
  CHECK(fourth >= 0 && from.size == client_name.size && memcmp(&from.name, &client_name.name, from.size) == 0);
  say(waiting[1], "named client"), expect(fourth, "named client");
  const int fresh = connected(SOCK_STREAM, server_path);
  CHECK(accept(server, nullptr, nullptr) >= 0);
  CHECK(close(fresh) == 0);

  for (const int fd : old_accepted) expect_name(fd, old_name);
  for (const int fd : old_clients) expect_name(fd, old_name, getpeername);
  expect(old_accepted[1], "to the old");
  say(old_accepted[0], "hello"), expect(old_clients[0], "hello");
  CHECK(close(bound(SOCK_SEQPACKET, old_name)) == 0);  // nobody has the name
  expect_name(packets, packets_name);
  const int packet_client = connected(SOCK_SEQPACKET, packets_name);
  CHECK(accept(packets, nullptr, nullptr) >= 0 && packet_client >= 0);

  expect_name(unlinked, twice_path), expect_name(second, twice_path);
  const int late = accept(unlinked, nullptr, nullptr);
  say(late, "late"), expect(unlinked_client, "late");
  const int current = connected(SOCK_STREAM, twice_path);
  CHECK(accept(second, nullptr, nullptr) >= 0 && current >= 0);

  CHECK(access(gone, F_OK) != 0);
  expect_name(homeless, homeless_path), expect_name(homeless_accepted, homeless_path);
  expect_name(half, homeless_path, getpeername), expect_name(mailbox, mailbox_path);
  say(homeless_client, "still here"), expect(homeless_accepted, "still here");
  CHECK_EQUAL(recv(half, working, 1, MSG_DONTWAIT), 0);
  expect(mailbox, "from nowhere", &stranger_path);

  expect_name(here, relative), expect_name(there, below);
  send_to(nameless, relative_from_elsewhere, "found"), expect(here, "found");
  send_to(nameless, relative, "from here"), expect(here, "from here");
  send_to(nameless, below, "below"), expect(there, "below");

  const Address nobody = {};
  expect(log, "named", &named), expect(log, "nameless", &nobody), expect(log, "dead", &dead_name);
  expect(log, "connected", &nobody), expect(log, "named again", &named);
  say(logger, "on and on"), expect(log, "on and on");
  expect(left, "before", &named);
  for (int i = 0; i < 20; ++i) expect(left, "many", &right_name);
  CHECK(sendto(sender, "x", 1, 0, (const sockaddr*)&left_name.name, left_name.size) == -1 && errno == EPERM);
  say(left, "back"), expect(right, "back");
  expect_name(widow, lost_name, getpeername);
  CHECK(send(widow, "x", 1, MSG_NOSIGNAL) == -1 && errno == ECONNREFUSED);
  expect_name(idle, idle_path);
  CHECK(listen(idle, 1) == 0 && connected(SOCK_STREAM, idle_path) >= 0);
  expect_name(idle_packets, idle_packets_name);
  CHECK(listen(idle_packets, 1) == 0);
  CHECK(connect(unbound, (const sockaddr*)&idle_packets_name.name, idle_packets_name.size) == 0);
  return probe::passed();
}
