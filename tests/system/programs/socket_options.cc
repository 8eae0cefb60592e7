// Options of sockets that have a value other than that of a new socket: of all levels, on sockets of all families. What
// this kernel does not have, or this user may not set, is left out.
// FAIL_RESTORE
#include <linux/net_tstamp.h>
#include <netinet/ip.h>
#include <sys/un.h>

#include <array>
#include <vector>

#include "inet.h"

namespace {

// Newer than the C library's headers.
constexpr int timestamp_new = 63, timestamping_new = 65, prefer_busy_poll = 69, receive_mark = 75,
              receive_priority = 82, bind_without_port = 24, local_port_range = 51, rto_max_ms = 44, fastopen_key = 33;

struct Option {
  int level, name;
  std::vector<unsigned char> value;
};

template <typename T>
Option option(int level, int name, T value) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&value);
  return {level, name, {bytes, bytes + sizeof value}};
}

class Subject {
 public:
  Subject(int family, int type, int protocol = 0) : fd_(socket(family, type, protocol)) { CHECK(fd_ >= 0); }

  Subject& set(const Option& wanted) {
    if (setsockopt(fd_, wanted.level, wanted.name, wanted.value.data(), (socklen_t)wanted.value.size()) != 0) {
      if (errno != EPERM && errno != EACCES && errno != ENOPROTOOPT && errno != EOPNOTSUPP)
        probe::failed("option %d of level %d cannot be set: %s", wanted.name, wanted.level, strerror(errno));
      return *this;
    }
    options_.push_back(wanted);
    return *this;
  }
  Subject& set(int level, int name, int value) { return set(option(level, name, value)); }

  /// Some change others when they are set (IP_TOS and SO_PRIORITY).
  void remember() {
    for (auto& option : options_) option.value = read(option);
  }
  void expect_unchanged() const {
    for (const auto& option : options_) {
      if (read(option) != option.value)
        probe::failed("socket %d: option %d of level %d has changed", fd_, option.name, option.level);
    }
  }
  int fd() const { return fd_; }
  size_t count() const { return options_.size(); }

 private:
  std::vector<unsigned char> read(const Option& which) const {
    std::vector<unsigned char> value(64);
    socklen_t size = (socklen_t)value.size();
    if (getsockopt(fd_, which.level, which.name, value.data(), &size) != 0)
      probe::failed("option %d of level %d cannot be read: %s", which.name, which.level, strerror(errno));
    value.resize(size);
    return value;
  }

  int fd_;
  std::vector<Option> options_;
};

void set_common(Subject& socket) {
  socket.set(SOL_SOCKET, SO_TIMESTAMPING, SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE)
      .set(SOL_SOCKET, SO_PRIORITY, 5)
      .set(SOL_SOCKET, SO_RXQ_OVFL, 1)
      .set(SOL_SOCKET, SO_MAX_PACING_RATE, 1'000'000)
      .set(SOL_SOCKET, SO_BUSY_POLL, 30)
      .set(SOL_SOCKET, prefer_busy_poll, 1)
      .set(SOL_SOCKET, SO_DEBUG, 1)
      .set(SOL_SOCKET, receive_mark, 1)
      .set(SOL_SOCKET, receive_priority, 1);
}

void set_ip(Subject& socket) {
  socket.set(SOL_IP, IP_TOS, 0x28)
      .set(SOL_IP, IP_TTL, 33)
      .set(SOL_IP, IP_RECVTOS, 1)
      .set(SOL_IP, IP_PKTINFO, 1)
      .set(SOL_IP, IP_RECVERR, 1)
      .set(SOL_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
      .set(SOL_IP, bind_without_port, 1)
      .set(SOL_IP, local_port_range, 45000 << 16 | 40000);
}

void set_ipv6(Subject& socket) {
  socket.set(SOL_IPV6, IPV6_TCLASS, 0x20).set(SOL_IPV6, IPV6_UNICAST_HOPS, 44).set(SOL_IPV6, IPV6_RECVTCLASS, 1);
  const std::array<unsigned char, 8> destination = {0, 0, 1, 4};  // padding
  socket.set(option(SOL_IPV6, IPV6_DSTOPTS, destination));
}

void set_tcp(Subject& socket) {
  const std::array<unsigned char, 16> key = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
  socket.set(SOL_TCP, TCP_NODELAY, 1)
      .set(SOL_TCP, TCP_USER_TIMEOUT, 4711)
      .set(SOL_TCP, TCP_KEEPIDLE, 77)
      .set(SOL_TCP, TCP_NOTSENT_LOWAT, 12345)
      .set(SOL_TCP, rto_max_ms, 5000)
      .set(SOL_SOCKET, SO_ZEROCOPY, 1)
      .set(option(SOL_TCP, fastopen_key, key));
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  std::vector<Subject> all;
  for (const int family : {AF_INET, AF_INET6}) {
    for (const int type : {SOCK_STREAM, SOCK_DGRAM}) {
      Subject& socket = all.emplace_back(family, type);
      set_common(socket);
      set_ip(socket);  // of IPv6 sockets, too: for what they send to IPv4
      if (family == AF_INET6) set_ipv6(socket);
      if (type == SOCK_STREAM) {
        set_tcp(socket);
      } else {
        socket.set(SOL_IP, IP_MULTICAST_TTL, 7).set(SOL_IP, IP_MULTICAST_LOOP, 0);
        socket.set(option(SOL_SOCKET, SO_TXTIME, sock_txtime{CLOCK_MONOTONIC, SOF_TXTIME_REPORT_ERRORS}));
      }
    }
  }
  const std::array<unsigned char, 8> route = {IPOPT_RR, 7, 4, 0, 0, 0, 0, IPOPT_END};
  all[1].set(option(SOL_IP, IP_OPTIONS, route));
  all.emplace_back(AF_INET, SOCK_DGRAM)
      .set(SOL_SOCKET, timestamp_new, 1)
      .set(SOL_SOCKET, timestamping_new, SOF_TIMESTAMPING_RX_SOFTWARE);
  Subject& stream = all.emplace_back(AF_UNIX, SOCK_STREAM);
  stream.set(SOL_SOCKET, SO_PASSCRED, 1);
  set_common(stream);
  Subject& listening = all.emplace_back(AF_INET6, SOCK_STREAM);
  set_ip(listening), set_tcp(listening);
  const auto address = inet::loopback(AF_INET6);
  CHECK(bind(listening.fd(), address.pointer(), address.size) == 0 && listen(listening.fd(), 3) == 0);
  size_t count = 0;
  for (auto& socket : all) socket.remember(), count += socket.count();
  CHECK(count > 60);

  probe::ready();
  probe::wait_for_go();

  for (const auto& socket : all) socket.expect_unchanged();
  return probe::passed();
}
