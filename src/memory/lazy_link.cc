#include "memory/lazy_link.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>

#include "kernel/local_socket.h"

namespace stasis::memory {
namespace {

constexpr const char* socket_name = "lazy-pages.socket";
constexpr size_t most_runs = 2048;  ///< of one message

/// Runs, or the text of an error, follow.
struct Head {
  uint32_t version = 2;
  LazyOrder::Kind kind = LazyOrder::Kind::hello;
  pid_t owner = 0;
  uint32_t failed = 0;
};
constexpr size_t largest_message = sizeof(Head) + most_runs * sizeof(AddressRange);

struct Message {
  Head head;
  Bytes rest;
  UniqueFd descriptor;
};

Status send_message(int socket, const Head& head, ByteView rest = {}, int descriptor = -1) {
  Bytes bytes = bytes_of(head);
  bytes.insert(bytes.end(), rest.begin(), rest.end());
  return kernel::send_packet(socket, bytes, descriptor);
}

Result<Message> receive_message(int socket) {
  auto packet = TRY(kernel::receive_packet(socket, largest_message));
  Message message{{}, {}, std::move(packet.descriptor)};
  if (packet.bytes.size() >= sizeof(Head)) std::memcpy(&message.head, packet.bytes.data(), sizeof(Head));
  if (packet.bytes.size() < sizeof(Head) || message.head.version != Head{}.version) {
    return fail(Error::conflict("speak about pages that come later", "the other side is of another version of stasis")
                    .advise("use one version for restore and lazy-pages"));
  }
  message.rest.assign(packet.bytes.begin() + sizeof(Head), packet.bytes.end());
  return message;
}

/// Through a descriptor of the directory: a socket's name must be short (unix(7)), its directory's need not.
struct Address {
  explicit Address(int directory) {
    bytes.sun_family = AF_UNIX;
    const auto path = fmt::format("/proc/self/fd/{}/{}", directory, socket_name);
    path.copy(bytes.sun_path, sizeof bytes.sun_path - 1);
  }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&bytes); }
  sockaddr_un bytes{};
};

Result<UniqueFd> open_directory(const std::string& path) {
  UniqueFd directory(open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid()) return fail_errno("open the directory of the socket", path);
  return directory;
}

/// While it is open nobody else looks for somebody who listens, removes what has been left, and listens himself: two
/// who do so at once would remove each other's socket. (Where the file system has no such locks, it goes without.)
Result<UniqueFd> lock_directory(int directory, const std::string& path) {
  UniqueFd lock(openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!lock.valid()) return fail_errno("open the directory of the socket", path);
  while (flock(lock.get(), LOCK_EX) != 0 && errno == EINTR) {
  }
  return lock;
}

}  // namespace

Result<LazyDaemon> LazyDaemon::connect(const std::string& path) {
  const auto directory = TRY(open_directory(path));
  const std::string subject = path + "/" + socket_name;
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return fail_errno("socket");
  const Address address(directory.get());
  if (::connect(socket.get(), address.get(), sizeof address.bytes) != 0) {
    return fail(Error::system("find who serves missing pages", errno, subject)
                    .advise("start `stasis lazy-pages` with the same images and work directory (-D, -W) before"));
  }
  if (!kernel::is_trusted_peer(socket.get())) {
    return fail(Error::conflict("find who serves missing pages", "another user listens there", subject)
                    .advise("run both as one user"));
  }
  LazyDaemon daemon(std::move(socket));
  TRY(daemon.say(LazyOrder::Kind::hello));
  return daemon;
}

Status LazyDaemon::hand_over(pid_t owner, int userfaultfd, std::span<const uint64_t> runs) {
  TRY(say(LazyOrder::Kind::address_space, owner, {}, userfaultfd));
  std::vector<AddressRange> ranges;
  for (size_t i = 0; i + 1 < runs.size(); i += 2) ranges.push_back({runs[i], runs[i] + runs[i + 1]});
  return send(LazyOrder::Kind::runs, owner, ranges);
}

Status LazyDaemon::need(pid_t owner, std::span<const AddressRange> ranges) {
  return send(LazyOrder::Kind::needed, owner, ranges);
}

Status LazyDaemon::send(LazyOrder::Kind kind, pid_t owner, std::span<const AddressRange> ranges) {
  while (!ranges.empty()) {
    const auto part = ranges.first(std::min(ranges.size(), most_runs));
    TRY(say(kind, owner, ByteView(reinterpret_cast<const uint8_t*>(part.data()), part.size_bytes())));
    ranges = ranges.subspan(part.size());
  }
  return {};
}

Status LazyDaemon::add_process(int pidfd) { return say(LazyOrder::Kind::process, 0, {}, pidfd); }

Status LazyDaemon::complete() { return say(LazyOrder::Kind::complete); }

Status LazyDaemon::commit() {
  TRY(say(LazyOrder::Kind::commit));
  return hear();
}

Status LazyDaemon::say(LazyOrder::Kind kind, pid_t owner, ByteView rest, int descriptor) {
  auto said = send_message(connection_.get(), {.kind = kind, .owner = owner}, rest, descriptor);
  if (said) return {};
  if (said.error().code() == ErrorCode::gone) TRY(hear());  // its last word says why
  return fail(std::move(said.error()).within("speak with lazy-pages"));
}

Status LazyDaemon::hear() {
  auto answer = receive_message(connection_.get());
  // First comes the news that it has not read all that was sent (ECONNRESET), then its last word.
  if (!answer && answer.error().code() == ErrorCode::gone) answer = receive_message(connection_.get());
  if (!answer && answer.error().code() == ErrorCode::gone) {
    return fail(Error::make(ErrorCode::gone, "leave missing pages to lazy-pages", "it has ended, without a word")
                    .advise("was it killed? Start it anew, then restore again"));
  }
  if (!answer) return fail(std::move(answer.error()).within("speak with lazy-pages"));
  if (answer->head.failed == 0) return {};
  return fail(
      Error::conflict("leave missing pages to lazy-pages", std::string(answer->rest.begin(), answer->rest.end())));
}

Result<LazyListener> LazyListener::open(const std::string& path) {
  auto directory = TRY(open_directory(path));
  const std::string subject = path + "/" + socket_name;
  const auto lock = TRY(lock_directory(directory.get(), path));
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return fail_errno("socket");
  const Address address(directory.get());
  const UniqueFd tried(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (::connect(tried.get(), address.get(), sizeof address.bytes) == 0) {
    return fail(Error::conflict("listen for a restore", "another lazy-pages does so already", subject)
                    .advise("let it serve its restore, or end it, or use another work directory (-W)"));
  }
  if (errno == ECONNREFUSED) unlinkat(directory.get(), socket_name, 0);  // of one that was killed
  if (bind(socket.get(), address.get(), sizeof address.bytes) != 0 || listen(socket.get(), 4) != 0)
    return fail_errno("listen for a restore", subject);
  return LazyListener(std::move(directory), std::move(socket));
}

Result<std::optional<UniqueFd>> LazyListener::accept() {
  UniqueFd connection(accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!connection.valid() && (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)) return std::nullopt;
  if (!connection.valid()) return fail_errno("listen for a restore");
  if (!kernel::is_trusted_peer(connection.get())) return std::nullopt;
  const auto order = receive_order(connection.get());
  if (!order || order->kind != LazyOrder::Kind::hello) return std::nullopt;
  close();
  return connection;
}

void LazyListener::close() {
  if (!socket_.valid()) return;
  unlinkat(directory_.get(), socket_name, 0);
  socket_.reset();
}

Result<LazyOrder> receive_order(int connection) {
  auto message = TRY(receive_message(connection));
  LazyOrder order{message.head.kind, message.head.owner, {}, std::move(message.descriptor)};
  order.runs.resize(message.rest.size() / sizeof(AddressRange));
  if (!order.runs.empty())
    std::memcpy(order.runs.data(), message.rest.data(), order.runs.size() * sizeof(AddressRange));
  return order;
}

Status answer_order(int connection, const std::optional<Error>& error) {
  Head head{.kind = LazyOrder::Kind::commit, .failed = error.has_value()};
  const std::string text = error ? error->message() : "";
  return send_message(connection, head, ByteView(reinterpret_cast<const uint8_t*>(text.data()), text.size()));
}

}  // namespace stasis::memory
