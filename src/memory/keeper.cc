#include "memory/keeper.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "kernel/descriptor_limit.h"
#include "kernel/local_socket.h"
#include "kernel/proc.h"
#include "kernel/process.h"

namespace stasis::memory {
namespace {

enum Kind : uint32_t { ask_fetch, ask_begin, tell_tracker, ask_commit, ask_stop, answer_round, answer_done };

/// The one message of the conversation; fields that a kind does not need are zero.
struct Message {
  uint32_t version = 1;
  uint32_t kind = 0;
  uint32_t count = 0;  ///< of trackers that follow
  pid_t pid = 0;       ///< the keeper's
  char text[48]{};     ///< the round, or a tracker's suffix
};

struct Received {
  Message message;
  UniqueFd descriptor;
};

Status send_message(int socket, const Message& message, int descriptor = -1) {
  TRY_IN("speak with the keeper of the trackers", kernel::send_packet(socket, bytes_of(message), descriptor));
  return {};
}

/// ErrorCode::gone at the end of the conversation.
Result<Received> receive_message(int socket) {
  auto packet = TRY_IN("speak with the keeper of the trackers", kernel::receive_packet(socket, sizeof(Message)));
  Received received{{}, std::move(packet.descriptor)};
  if (packet.bytes.size() == sizeof(Message)) std::memcpy(&received.message, packet.bytes.data(), sizeof(Message));
  if (packet.bytes.size() != sizeof(Message) || received.message.version != Message{}.version)
    return fail(Error::conflict("speak with the keeper of the trackers", "it is of another version of stasis")
                    .advise("end it by `stasis dirty --stop -t PID` of that version"));
  received.message.text[sizeof received.message.text - 1] = 0;
  return received;
}

Message message_of(Kind kind, std::string_view text = {}) {
  Message message;
  message.kind = kind;
  text.copy(message.text, sizeof message.text - 1);
  return message;
}

Result<std::string> socket_name(pid_t root) {
  const auto stat = kernel::read_stat(root);
  if (!stat) {
    return fail(
        Error::conflict("look for the trackers of the tree", "there is no such process", fmt::format("task {}", root))
            .advise("check the pid given with --tree"));
  }
  struct stat space{};
  if (::stat("/proc/self/ns/pid", &space) != 0) return fail_errno("stat", "/proc/self/ns/pid");
  return fmt::format("stasis-tracking-{}-{}-{}", space.st_ino, root, stat->start_time);
}

struct Address {
  sockaddr_un bytes{};
  socklen_t size = 0;
};

Address address_of(const std::string& name) {
  Address address;
  address.bytes.sun_family = AF_UNIX;
  name.copy(address.bytes.sun_path + 1, sizeof address.bytes.sun_path - 1);  // after a zero byte: an abstract name
  address.size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return address;
}

// ---- the keeper's side

constexpr int patience_with_caller_ms = 30'000;  ///< for whoever has started it to call: it may have died

class Service {
 public:
  Service(int listener, int root) : listener_(listener), root_(root) {}

  [[noreturn]] void run() {
    for (;;) {
      wait_for(listener_, !round_.empty() ? -1 : patience_with_caller_ms);
      const UniqueFd connection(accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC));
      if (!connection.valid() || !kernel::is_trusted_peer(connection.get())) continue;
      while (answer(connection.get())) {
      }
      coming_.clear();
      if (round_.empty()) end();
    }
  }

 private:
  [[noreturn]] void end() {
    held_.clear();  // the kernel ends the tracking before close(2) returns
    _exit(0);
  }

  void wait_for(int descriptor, int timeout_ms = -1) {
    pollfd wanted[] = {{descriptor, POLLIN, 0}, {root_, POLLIN, 0}};
    int ready = 0;
    do ready = poll(wanted, 2, timeout_ms);
    while (ready < 0 && errno == EINTR);
    if (ready <= 0 || wanted[1].revents != 0) end();
  }

  bool answer(int connection) {
    wait_for(connection);
    auto received = receive_message(connection);
    if (!received) return false;
    auto& [message, descriptor] = *received;
    switch (message.kind) {
      case ask_fetch:
        return tell_all(connection);
      case ask_begin:
        round_.clear();
        return confirm(connection);
      case tell_tracker:
        if (descriptor.valid()) coming_.push_back({message.text, std::move(descriptor)});
        return true;
      case ask_commit:
        held_ = std::exchange(coming_, {});
        round_ = message.text;
        return confirm(connection);
      case ask_stop:
        held_.clear();
        close(listener_);  // whoever looks for us after this finds nobody
        (void)confirm(connection);
        end();
      default:
        return false;
    }
  }

  bool confirm(int connection) { return send_message(connection, message_of(answer_done)).has_value(); }

  bool tell_all(int connection) {
    Message head = message_of(answer_round, round_);
    head.count = static_cast<uint32_t>(held_.size());
    head.pid = getpid();
    if (!send_message(connection, head)) return false;
    for (const Held& held : held_) {
      if (!send_message(connection, message_of(tell_tracker, held.suffix), held.descriptor.get())) return false;
    }
    return true;
  }

  struct Held {
    std::string suffix;
    UniqueFd descriptor;
  };
  int listener_, root_;
  std::string round_;
  std::vector<Held> held_, coming_;
};

/// Nothing of the caller is kept: no terminal, no directory, no descriptor, no handlers.
[[noreturn]] void become_keeper(int listener, int root) {
  setsid();
  prctl(PR_SET_NAME, "stasis-keeper");
  if (chdir("/") != 0) _exit(1);
  for (int number = 1; number < NSIG; ++number)
    signal(number, number == SIGPIPE || number == SIGHUP ? SIG_IGN : SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  // Both above the standard ones, then the standard ones, then nothing beside them.
  listener = fcntl(listener, F_DUPFD_CLOEXEC, 64);
  root = fcntl(root, F_DUPFD_CLOEXEC, 64);
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (listener < 0 || root < 0 || null < 0) _exit(1);
  for (unsigned standard = 0; standard < 3; ++standard) dup2(null, static_cast<int>(standard));
  const auto first = static_cast<unsigned>(std::min(listener, root)),
             last = static_cast<unsigned>(std::max(listener, root));
  close_range(3, first - 1, 0);
  close_range(first + 1, last - 1, 0);
  close_range(last + 1, ~0u, 0);
  kernel::raise_descriptor_limit();  // one descriptor for each address space
  Service(listener, root).run();
}

}  // namespace

Result<std::string> new_round() {
  uint64_t words[2]{};
  if (getrandom(words, sizeof words, 0) != sizeof words) return fail_errno("getrandom");
  return fmt::format("{:016x}{:016x}", words[0], words[1]);
}

Result<std::optional<Keeper>> Keeper::connect(const std::string& name) {
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return fail_errno("socket");
  const Address address = address_of(name);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address.bytes), address.size) != 0) {
    if (errno == ECONNREFUSED) return std::nullopt;
    return fail_errno("speak with the keeper of the trackers", "@" + name);
  }
  if (!kernel::is_trusted_peer(socket.get())) {
    return fail(Error::conflict("speak with the keeper of the trackers", "it belongs to another user", "@" + name)
                    .advise("run as the user who began the tracking"));
  }
  return Keeper(std::move(socket));
}

Result<std::optional<Keeper>> Keeper::find(pid_t root) { return connect(TRY(socket_name(root))); }

Result<Keeper> Keeper::start(pid_t root) {
  const auto name = TRY(socket_name(root));
  const auto pidfd = TRY(kernel::pidfd_open(root));
  const UniqueFd listener(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const Address address = address_of(name);
  if (bind(listener.get(), reinterpret_cast<const sockaddr*>(&address.bytes), address.size) != 0 ||
      listen(listener.get(), 8) != 0) {
    return fail_errno("start the keeper of the trackers", "@" + name);
  }
  const pid_t child = fork();
  if (child < 0) return fail_errno("start the keeper of the trackers");
  if (child == 0) become_keeper(listener.get(), pidfd.get());
  auto connection = TRY(connect(name));
  if (!connection) return fail(Error::internal("start the keeper of the trackers", "it ended at once"));
  return std::move(*connection);
}

Status Keeper::ask(uint32_t kind, const std::string& round) {
  TRY(send_message(connection_.get(), message_of(static_cast<Kind>(kind), round)));
  const auto received = TRY(receive_message(connection_.get()));
  if (received.message.kind == answer_done) return {};
  return fail(Error::internal("speak with the keeper of the trackers", "an answer to another question"));
}

Result<Keeper::Kept> Keeper::fetch() {
  kernel::raise_descriptor_limit();  // one descriptor for each address space
  TRY(send_message(connection_.get(), message_of(ask_fetch)));
  const auto head = TRY(receive_message(connection_.get())).message;
  pid_ = head.pid;
  Kept kept;
  kept.round = head.text;
  for (uint32_t index = 0; index < head.count; ++index) {
    auto received = TRY(receive_message(connection_.get()));
    if (!received.descriptor.valid())
      return fail(Error::conflict("take over the trackers", "a descriptor is missing: too many are open here")
                      .advise("raise the limit of open files (ulimit -n)"));
    kept.trackers.add({received.message.text, kernel::Userfaultfd(std::move(received.descriptor))});
  }
  return kept;
}

Status Keeper::begin() { return ask(ask_begin); }

Status Keeper::commit(const std::string& round, const Trackers& trackers) {
  for (const auto& tracker : trackers.all())
    TRY(send_message(connection_.get(), message_of(tell_tracker, tracker->suffix), tracker->descriptor.fd()));
  return ask(ask_commit, round);
}

Status Keeper::stop() { return ask(ask_stop); }

}  // namespace stasis::memory
