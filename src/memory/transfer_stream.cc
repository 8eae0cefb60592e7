#include "memory/transfer_stream.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <vector>

#include <fmt/format.h>

#include "memory/io_parts.h"

namespace stasis::memory {
namespace {

constexpr size_t read_ahead = 64 << 10;

std::unexpected<Error> broken(std::string operation, int errno_value, const std::string& peer) {
  if (errno_value == EAGAIN || errno_value == EWOULDBLOCK)
    return fail(Error::conflict(std::move(operation), "it makes no headway any more", peer));
  return fail(Error::system(std::move(operation), errno_value, peer));
}

template <typename Value>
Status set_option(int socket, int level, int name, Value value) {
  if (setsockopt(socket, level, name, &value, sizeof value) == 0) return {};
  return fail_errno("setsockopt", peer_of(socket));
}

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

Result<Addresses> resolve(const Endpoint& endpoint, int flags) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM, hints.ai_flags = flags;
  const auto port = std::to_string(endpoint.port);
  const int error =
      getaddrinfo(endpoint.address.empty() ? nullptr : endpoint.address.c_str(), port.c_str(), &hints, &found);
  if (error == 0) return Addresses(found, freeaddrinfo);
  return fail(Error::invalid("look up the address", gai_strerror(error), endpoint.address)
                  .advise("give an address of IPv4 or IPv6, or a name that this machine knows, with --address"));
}

Endpoint endpoint_of(const sockaddr_storage& address) {
  char text[INET6_ADDRSTRLEN]{};
  if (address.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(address);
    inet_ntop(AF_INET, &in.sin_addr, text, sizeof text);
    return {text, ntohs(in.sin_port)};
  }
  const auto& in = reinterpret_cast<const sockaddr_in6&>(address);
  inet_ntop(AF_INET6, &in.sin6_addr, text, sizeof text);
  return {text, ntohs(in.sin6_port)};
}

class PlainStream final : public Stream {
 public:
  explicit PlainStream(UniqueFd socket) : Stream(peer_of(socket.get())), socket_(std::move(socket)) {}

  using Stream::write;
  Status write(std::span<const iovec> parts) override {
    std::vector<iovec> copy(parts.begin(), parts.end());
    for (auto left = rest_of(copy, 0); !left.empty();) {
      const size_t count = std::min<size_t>(left.size(), IOV_MAX);
      left = rest_of(left, TRY(send_some(socket_.get(), left.first(count), peer())));
    }
    return {};
  }
  int descriptor() const override { return socket_.get(); }

 protected:
  Result<size_t> read_some(std::span<uint8_t> buffer) override { return receive_some(socket_.get(), buffer, peer()); }
  Status say_end() override {
    if (shutdown(socket_.get(), SHUT_WR) == 0 || errno == ENOTCONN) return {};
    return broken("end the connection", errno, peer());
  }

 private:
  UniqueFd socket_;
};

}  // namespace

Result<bool> Stream::read_or_end(std::span<uint8_t> buffer) {
  const size_t wanted = buffer.size();
  while (!buffer.empty()) {
    size_t got = 0;
    if (next_ == filled_ && buffer.size() >= read_ahead) {
      got = TRY(read_some(buffer));
    } else {
      if (next_ == filled_) {
        buffer_.resize(read_ahead);
        next_ = filled_ = 0;
        filled_ = TRY(read_some(buffer_));
      }
      got = std::min(filled_ - next_, buffer.size());
      std::memcpy(buffer.data(), buffer_.data() + next_, got);
      next_ += got;
    }
    if (got == 0 && buffer.size() == wanted) return false;
    if (got == 0) return fail(Error::conflict("receive", "the connection ended in the middle of a message", peer_));
    buffer = buffer.subspan(got);
  }
  return true;
}

Status Stream::read(std::span<uint8_t> buffer) {
  if (buffer.empty() || TRY(read_or_end(buffer))) return {};
  return fail(Error::conflict("receive", "the other side has ended the connection", peer_));
}

Status Stream::write(ByteView bytes) {
  const iovec part{const_cast<uint8_t*>(bytes.data()), bytes.size()};
  return write(std::span(&part, 1));
}

Status Stream::finish() {
  TRY(say_end());
  uint8_t byte = 0;
  if (TRY(read_or_end({&byte, 1})))
    return fail(Error::invalid("end the connection", "the other side sends more than was agreed on", peer_));
  return {};
}

std::string to_text(const Endpoint& endpoint) {
  const bool has_colons = endpoint.address.find(':') != std::string::npos;
  return has_colons ? fmt::format("[{}]:{}", endpoint.address, endpoint.port)
                    : fmt::format("{}:{}", endpoint.address.empty() ? "*" : endpoint.address, endpoint.port);
}

Result<UniqueFd> connect_to(const Endpoint& endpoint, std::chrono::seconds patience) {
  const auto addresses = TRY(resolve(endpoint, 0));
  int error = EADDRNOTAVAIL;
  for (const addrinfo* one = addresses.get(); one != nullptr; one = one->ai_next) {
    UniqueFd socket(::socket(one->ai_family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP));
    if (!socket.valid()) {
      error = errno;
      continue;
    }
    TRY(prepare_connection(socket.get(), patience));
    if (connect(socket.get(), one->ai_addr, one->ai_addrlen) == 0) return socket;
    error = errno == EINPROGRESS ? ETIMEDOUT : errno;  // SO_SNDTIMEO has passed
  }
  return fail(Error::system("connect", error, to_text(endpoint))
                  .advise("start `stasis page-server` there first, and name it with --address and --port"));
}

Result<Listener> Listener::open(const Endpoint& endpoint) {
  const auto addresses = TRY(resolve(endpoint, AI_PASSIVE));
  const auto failed = [&](std::string operation) {
    return fail(Error::system(std::move(operation), errno, to_text(endpoint))
                    .advise("name an address of this machine and a free port with --address and --port"));
  };
  Listener listener;
  listener.fd_ = UniqueFd(socket(addresses->ai_family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP));
  if (!listener.fd_.valid()) return failed("open a socket");
  const int fd = listener.fd_.get();
  TRY(set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1));
  if (bind(fd, addresses->ai_addr, addresses->ai_addrlen) != 0) return failed("bind");
  if (listen(fd, 1) != 0) return failed("listen");
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &size) != 0) return failed("getsockname");
  listener.endpoint_ = endpoint_of(bound);
  return listener;
}

Result<UniqueFd> Listener::accept() const {
  for (;;) {
    UniqueFd socket(accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (socket.valid()) return socket;
    if (errno != EINTR && errno != ECONNABORTED) return fail_errno("accept a connection", to_text(endpoint_));
  }
}

std::string peer_of(int socket) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (getpeername(socket, reinterpret_cast<sockaddr*>(&address), &size) == 0 &&
      (address.ss_family == AF_INET || address.ss_family == AF_INET6)) {
    return to_text(endpoint_of(address));
  }
  return fmt::format("descriptor {}", socket);
}

Status prepare_connection(int socket, std::chrono::seconds patience) {
  int type = 0, family = 0;
  socklen_t size = sizeof type;
  if (getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &size) != 0) return fail_errno("use as a socket", peer_of(socket));
  if (type != SOCK_STREAM) return fail(Error::invalid("use as a socket", "it is not SOCK_STREAM", peer_of(socket)));
  size = sizeof family;
  if (getsockopt(socket, SOL_SOCKET, SO_DOMAIN, &family, &size) != 0) return fail_errno("getsockopt", peer_of(socket));
  const timeval limit{patience.count(), 0};
  TRY(set_option(socket, SOL_SOCKET, SO_RCVTIMEO, limit));
  TRY(set_option(socket, SOL_SOCKET, SO_SNDTIMEO, limit));
  if (family != AF_INET && family != AF_INET6) return {};
  // Whoever writes has put together what belongs together; tcp(7): probes after 20 s of silence, the end after 60.
  TRY(set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1));
  TRY(set_option(socket, SOL_SOCKET, SO_KEEPALIVE, 1));
  TRY(set_option(socket, IPPROTO_TCP, TCP_KEEPIDLE, 20));
  TRY(set_option(socket, IPPROTO_TCP, TCP_KEEPINTVL, 10));
  return set_option(socket, IPPROTO_TCP, TCP_KEEPCNT, 4);
}

std::unique_ptr<Stream> plain_stream(UniqueFd socket) { return std::make_unique<PlainStream>(std::move(socket)); }

Result<size_t> receive_some(int socket, std::span<uint8_t> buffer, const std::string& peer) {
  for (;;) {
    const ssize_t got = recv(socket, buffer.data(), buffer.size(), 0);
    if (got >= 0) return static_cast<size_t>(got);
    if (errno != EINTR) return broken("receive", errno, peer);
  }
}

Result<size_t> send_some(int socket, std::span<const iovec> parts, const std::string& peer) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(parts.data()), message.msg_iovlen = parts.size();
  for (;;) {
    const ssize_t sent = sendmsg(socket, &message, MSG_NOSIGNAL);
    if (sent >= 0) return static_cast<size_t>(sent);
    if (errno != EINTR) return broken("send", errno, peer);
  }
}

}  // namespace stasis::memory
