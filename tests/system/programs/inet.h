// What the programs with internet sockets have in common.
#pragma once

#include <arpa/inet.h>
#include <initializer_list>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "probe.h"

namespace inet {

struct Address {
  sockaddr_storage name = {};
  socklen_t size = 0;

  const sockaddr* pointer() const { return (const sockaddr*)&name; }
  uint16_t port() const { return ntohs(((const sockaddr_in*)&name)->sin_port); }  // at the same place in both families
};

inline Address loopback(int family, uint16_t port = 0) {
  Address made;
  if (family == AF_INET6) {
    sockaddr_in6 name = {};
    name.sin6_family = AF_INET6, name.sin6_addr = IN6ADDR_LOOPBACK_INIT, name.sin6_port = htons(port);
    memcpy(&made.name, &name, made.size = sizeof name);
  } else {
    sockaddr_in name = {};
    name.sin_family = AF_INET, name.sin_addr.s_addr = htonl(INADDR_LOOPBACK), name.sin_port = htons(port);
    memcpy(&made.name, &name, made.size = sizeof name);
  }
  return made;
}

inline Address address_of(int fd, int (*ask)(int, sockaddr*, socklen_t*) = getsockname) {
  Address found;
  found.size = sizeof found.name;
  CHECK(ask(fd, (sockaddr*)&found.name, &found.size) == 0);
  return found;
}

inline void expect_same(const Address& a, const Address& b) {
  CHECK_EQUAL(a.size, b.size);
  CHECK(memcmp(&a.name, &b.name, a.size) == 0);
}

inline void set(int fd, int level, int name, int value) {
  if (setsockopt(fd, level, name, &value, sizeof value) != 0)
    probe::failed("option %d of level %d cannot be set to %d: %s", name, level, value, strerror(errno));
}
inline int get(int fd, int level, int name) {
  int value = 0;
  socklen_t size = sizeof value;
  if (getsockopt(fd, level, name, &value, &size) != 0)
    probe::failed("option %d of level %d cannot be read: %s", name, level, strerror(errno));
  return value;
}
inline void expect_option(int fd, int level, int name, int value) {
  if (const int got = get(fd, level, name); got != value)
    probe::failed("option %d of level %d is %d, expected %d", name, level, got, value);
}

inline int state_of(int fd) {
  tcp_info info = {};
  socklen_t size = sizeof info;
  CHECK(getsockopt(fd, SOL_TCP, TCP_INFO, &info, &size) == 0);
  return info.tcpi_state;
}
inline int waiting_in(int fd) {
  int count = -1;
  CHECK(ioctl(fd, FIONREAD, &count) == 0);
  return count;
}
inline void await_bytes(int fd, int count) {
  while (waiting_in(fd) < count) usleep(500);
}
/// Until the peer has acknowledged everything.
inline void await_acknowledged(int fd) {
  for (int count = -1; count != 0; usleep(500)) CHECK(ioctl(fd, TIOCOUTQ, &count) == 0);
}
inline void await_state(int fd, int state) {
  for (int tries = 0; state_of(fd) != state; ++tries) {
    if (tries > 20000) probe::failed("the socket is in state %d, not %d", state_of(fd), state);
    usleep(500);
  }
}

/// `option`: SO_REUSEADDR, say.
inline int listening(int family, int option = 0, int backlog = 16) {
  const int fd = socket(family, SOCK_STREAM, 0);
  const auto address = loopback(family);
  if (option != 0) set(fd, SOL_SOCKET, option, 1);
  CHECK(fd >= 0 && bind(fd, address.pointer(), address.size) == 0 && listen(fd, backlog) == 0);
  return fd;
}

/// Whatever is sent to a deaf socket is dropped, as if it had been lost on the way.
inline void make_deaf(int fd) {
  sock_filter drop = {BPF_RET | BPF_K, 0, 0, 0};
  const sock_fprog program = {1, &drop};
  CHECK(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
}
inline void make_hear(int fd) {
  const int unused = 0;
  CHECK(setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &unused, sizeof unused) == 0);
}

struct Pair {
  int client = -1, server = -1;
};
/// A connection through the listening socket.
inline Pair connected(int listener) {
  const auto to = address_of(listener);
  Pair pair;
  pair.client = socket(to.name.ss_family, SOCK_STREAM, 0);
  CHECK(pair.client >= 0 && connect(pair.client, to.pointer(), to.size) == 0);
  pair.server = accept(listener, nullptr, nullptr);
  CHECK(pair.server >= 0);
  return pair;
}

/// Byte `index` of a stream that can be checked.
inline uint8_t pattern(size_t index, unsigned seed) { return (uint8_t)((index * 2654435761u >> 13) + seed); }

inline void write_pattern(int fd, size_t from, size_t count, unsigned seed) {
  uint8_t block[4096];
  for (size_t done = 0; done < count;) {
    const size_t length = count - done < sizeof block ? count - done : sizeof block;
    for (size_t i = 0; i < length; ++i) block[i] = pattern(from + done + i, seed);
    const ssize_t sent = send(fd, block, length, MSG_NOSIGNAL);
    CHECK(sent > 0);
    done += (size_t)sent;
  }
}
/// Until nothing more fits in: how much that was.
inline size_t fill_pattern(int fd, size_t from, unsigned seed) {
  uint8_t block[4096];
  for (size_t done = 0;;) {
    for (size_t i = 0; i < sizeof block; ++i) block[i] = pattern(from + done + i, seed);
    const ssize_t sent = send(fd, block, sizeof block, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EAGAIN) return done;
    CHECK(sent > 0);
    done += (size_t)sent;
  }
}
inline void read_pattern(int fd, size_t from, size_t count, unsigned seed) {
  uint8_t block[4096];
  for (size_t done = 0; done < count;) {
    const ssize_t got = recv(fd, block, count - done < sizeof block ? count - done : sizeof block, 0);
    if (got <= 0) probe::failed("after %zu of %zu bytes: %zd, %s", done, count, got, strerror(errno));
    for (ssize_t i = 0; i < got; ++i) {
      if (block[i] != pattern(from + done + (size_t)i, seed))
        probe::failed("byte %zu of %zu is wrong", done + (size_t)i, count);
    }
    done += (size_t)got;
  }
}

/// Both ends still talk to each other.
inline void expect_alive(const Pair& pair) {
  for (int round = 0; round < 2; ++round) {
    write_pattern(pair.client, 0, 1000, 7), read_pattern(pair.server, 0, 1000, 7);
    write_pattern(pair.server, 0, 1000, 8), read_pattern(pair.client, 0, 1000, 8);
  }
  await_acknowledged(pair.client), await_acknowledged(pair.server);
}

// Urgent data (MSG_OOB) is one byte, which leaves a mark in the stream.
constexpr uint8_t urgent_byte = '!';
/// The byte, or minus what recv(2) says.
inline int out_of_band(int fd, int flags = 0) {
  uint8_t byte = 0;
  const ssize_t got = recv(fd, &byte, 1, MSG_OOB | MSG_DONTWAIT | flags);
  return got == 1 ? byte : got == 0 ? 0 : -errno;
}
inline int look_out_of_band(int fd) { return out_of_band(fd, MSG_PEEK); }
inline bool is_at_mark(int fd) {
  int answer = -1;
  CHECK(ioctl(fd, SIOCATMARK, &answer) == 0);
  return answer != 0;
}
inline bool is_exceptional(int fd) {
  pollfd asked = {fd, POLLPRI, 0};
  return poll(&asked, 1, 0) == 1 && (asked.revents & POLLPRI) != 0;
}
inline void send_urgent(int fd, uint8_t byte = urgent_byte) { CHECK(send(fd, &byte, 1, MSG_OOB) == 1); }
inline void expect_byte(int fd, uint8_t byte) {
  uint8_t got = 0;
  CHECK(recv(fd, &got, 1, MSG_DONTWAIT) == 1);
  CHECK_EQUAL(got, byte);
}

/// Nothing more comes.
inline void expect_end(int fd) {
  char byte = 0;
  CHECK_EQUAL(recv(fd, &byte, 1, 0), 0);
}
/// Nothing more can be sent.
inline void expect_broken(int fd) {
  const char byte = 0;
  CHECK(send(fd, &byte, 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
}

}  // namespace inet
