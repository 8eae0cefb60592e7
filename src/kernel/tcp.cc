#include "kernel/tcp.h"

#include <fmt/format.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernel/socket_option.h"

namespace stasis::kernel {
namespace {

// linux/tcp.h and netinet/tcp.h exclude each other; the states are in the latter only.
enum State {
  established = 1,
  syn_sent,
  syn_received,
  fin_wait_1,
  fin_wait_2,
  time_wait,
  closed,
  close_wait,
  last_ack,
  listening,
  closing
};
enum Queue { no_queue, receive_queue, send_queue };
constexpr int repair_off_silently = -1;  // TCP_REPAIR_OFF_NO_WP: without a window probe

Status set(int fd, int option, int value, const char* name) {
  if (setsockopt(fd, IPPROTO_TCP, option, &value, sizeof value) != 0) return fail_errno(name);
  return {};
}

Result<uint32_t> waiting(int fd, unsigned long request, const char* name) {
  int count = 0;
  if (ioctl(fd, request, &count) != 0) return fail_errno(name);
  return static_cast<uint32_t>(count);
}

/// SO_REUSEADDR, which the end of repair mode sets to 0, is put back.
class Repair {
 public:
  static Result<Repair> begin(int fd) {
    const int reuse = TRY(socket_option<int>(fd, SOL_SOCKET, SO_REUSEADDR, "SO_REUSEADDR"));
    TRY(set_repair(fd, true));
    return Repair(fd, reuse);
  }
  Repair(Repair&& other) noexcept : fd_(std::exchange(other.fd_, -1)), reuse_(other.reuse_) {}
  Repair(const Repair&) = delete;
  ~Repair() {
    if (fd_ < 0) return;
    (void)set(fd_, TCP_REPAIR, repair_off_silently, "");
    setsockopt(fd_, SOL_SOCKET, SO_REUSEADDR, &reuse_, sizeof reuse_);
  }

 private:
  Repair(int fd, int reuse) : fd_(fd), reuse_(reuse) {}
  int fd_, reuse_;
};

/// How a program wants to receive decides what can be seen: while it lives, all is in line and looked at from the
/// beginning.
class PlainSight {
 public:
  static Result<PlainSight> begin(int fd) {
    const int in_line = TRY(socket_option<int>(fd, SOL_SOCKET, SO_OOBINLINE, "SO_OOBINLINE"));
    const auto offset = socket_option<int>(fd, SOL_SOCKET, SO_PEEK_OFF, "SO_PEEK_OFF");
    PlainSight sight(fd, in_line, offset ? *offset : from_the_beginning);
    TRY(sight.set(SO_OOBINLINE, 1, "SO_OOBINLINE"));
    if (sight.offset_ != from_the_beginning) TRY(sight.look_from(from_the_beginning));
    return sight;
  }
  PlainSight(PlainSight&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), in_line_(other.in_line_), offset_(other.offset_), moved_(other.moved_) {}
  PlainSight(const PlainSight&) = delete;
  ~PlainSight() {
    if (fd_ < 0) return;
    (void)set(SO_OOBINLINE, in_line_, "");
    if (moved_) (void)set(SO_PEEK_OFF, offset_, "");
  }

  Status look_from(int offset) {
    moved_ = true;
    auto changed = set(SO_PEEK_OFF, offset, "SO_PEEK_OFF");
    if (changed) return {};
    return fail(
        std::move(changed).error().advise("what waits behind a byte that was received out of band can be looked at "
                                          "since Linux 6.9; let the program receive what is before it"));
  }

  /// What is there counts only up to the mark unless it is in line; the byte is told out of band only then (net/ipv4/
  /// tcp.c, tcp_inq and tcp_recv_urg).
  Result<std::optional<UrgentMark>> find_mark() {
    TRY(set(SO_OOBINLINE, 0, "SO_OOBINLINE"));
    uint8_t byte = 0;
    const bool waits = recv(fd_, &byte, 1, MSG_OOB | MSG_PEEK | MSG_DONTWAIT) == 1;
    const uint32_t before = TRY(waiting(fd_, SIOCINQ, "SIOCINQ"));
    TRY(set(SO_OOBINLINE, 1, "SO_OOBINLINE"));
    if (TRY(waiting(fd_, SIOCINQ, "SIOCINQ")) == before) return std::nullopt;
    return UrgentMark{before, !waits};
  }

 private:
  static constexpr int from_the_beginning = -1;

  PlainSight(int fd, int in_line, int offset) : fd_(fd), in_line_(in_line), offset_(offset) {}
  Status set(int option, int value, const char* name) const {
    if (setsockopt(fd_, SOL_SOCKET, option, &value, sizeof value) != 0) return fail_errno(name);
    return {};
  }

  int fd_, in_line_, offset_;
  bool moved_ = false;
};

/// Sets the sequence number behind it.
Status begin_queue(int fd, Queue queue, uint32_t& sequence) {
  TRY(set(fd, TCP_REPAIR_QUEUE, queue, "TCP_REPAIR_QUEUE"));
  sequence = TRY(socket_option<uint32_t>(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, "TCP_QUEUE_SEQ"));
  return {};
}

Status look(int fd, std::span<uint8_t> bytes) {
  if (bytes.empty()) return {};
  const ssize_t received = recv(fd, bytes.data(), bytes.size(), MSG_PEEK | MSG_DONTWAIT);
  if (received < 0) return fail_errno("look at a queue");
  if (received != static_cast<ssize_t>(bytes.size()))
    return fail(Error::conflict("look at a queue", fmt::format("{} bytes of {} are there", received, bytes.size())));
  return {};
}

/// Looking stops at the mark, as receiving does, unless it begins there (net/ipv4/tcp.c, tcp_recvmsg_locked).
Status look_at_received(int fd, PlainSight& sight, TcpStream& stream) {
  TRY(begin_queue(fd, receive_queue, stream.receive_sequence));
  const std::span bytes(stream.received);
  const size_t before = stream.mark ? stream.mark->at : 0;
  TRY(look(fd, bytes.first(before)));
  if (before != 0) TRY(sight.look_from(static_cast<int>(before)));
  return look(fd, bytes.subspan(before));
}

Status look_at_written(int fd, TcpStream& stream) {
  TRY(begin_queue(fd, send_queue, stream.send_sequence));
  return look(fd, stream.written);
}

Status read_stream(StreamToRead& one) {
  const int fd = one.fd;
  auto& stream = one.stream;
  const auto info = TRY(tcp_info(fd));
  if (!is_connected(info.state) && info.state != syn_sent) return {};
  const uint32_t fin = has_sent_fin(info.state) ? 1 : 0;
  uint32_t written = TRY(waiting(fd, SIOCOUTQ, "SIOCOUTQ")), unsent = TRY(waiting(fd, SIOCOUTQNSD, "SIOCOUTQNSD"));
  auto sight = TRY(PlainSight::begin(fd));
  stream.mark = TRY(sight.find_mark());
  stream.received.resize(TRY(waiting(fd, SIOCINQ, "SIOCINQ")));
  written -= std::min(written, fin), unsent -= std::min(unsent, fin);  // a FIN counts like a byte
  stream.options = info.options, stream.send_scale = info.send_scale, stream.receive_scale = info.receive_scale;
  stream.unsent = unsent, stream.written.resize(written);
  const auto repair = TRY(Repair::begin(fd));
  stream.largest_segment = TRY(socket_option<uint32_t>(fd, IPPROTO_TCP, TCP_MAXSEG, "TCP_MAXSEG"));
  stream.timestamp = TRY(socket_option<uint32_t>(fd, IPPROTO_TCP, TCP_TIMESTAMP, "TCP_TIMESTAMP"));
  const auto window = TRY(socket_option<tcp_repair_window>(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, "TCP_REPAIR_WINDOW"));
  stream.window = {window.snd_wl1, window.snd_wnd, window.max_window, window.rcv_wnd, window.rcv_wup};
  TRY(look_at_received(fd, sight, stream));
  return look_at_written(fd, stream);
}

struct Reading {
  std::span<StreamToRead> streams;
  pid_t begun_by = 0;
  Status outcome = {};
};

/// In the process of our own. Whoever has begun it may be gone: then nobody wants to know more.
int read_in_child(void* argument) {
  auto& reading = *static_cast<Reading*>(argument);
  for (auto& one : reading.streams) {
    if (syscall(SYS_getppid) != reading.begun_by) break;
    Status read = read_stream(one);
    if (read) continue;
    reading.outcome = fail(std::move(read).error().about(one.subject));
    break;
  }
  return 0;
}

}  // namespace

bool has_sent_fin(int state) {
  return state == fin_wait_1 || state == fin_wait_2 || state == closing || state == last_ack;
}
bool has_received_fin(int state) { return state == close_wait || state == last_ack || state == closing; }
bool is_connected(int state) { return state == established || has_sent_fin(state) || has_received_fin(state); }

Result<TcpInfo> tcp_info(int fd) {
  const auto told = TRY(socket_option<struct tcp_info>(fd, IPPROTO_TCP, TCP_INFO, "TCP_INFO"));
  TcpInfo info;
  info.state = told.tcpi_state, info.options = told.tcpi_options;
  info.send_scale = told.tcpi_snd_wscale, info.receive_scale = told.tcpi_rcv_wscale;
  // net/ipv4/tcp.c, tcp_get_info: "Report meaningful fields for all TCP states, but for listeners".
  if (info.state == listening) info.pending = told.tcpi_unacked, info.backlog = told.tcpi_sacked;
  return info;
}

bool can_look_behind_marks(int fd) {
  return socket_option<int>(fd, SOL_SOCKET, SO_PEEK_OFF, "SO_PEEK_OFF").has_value();
}

Status read_streams(std::span<StreamToRead> streams) {
  if (streams.empty()) return {};
  constexpr size_t stack_size = 1 << 18;
  void* stack = mmap(nullptr, stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  if (stack == MAP_FAILED) return fail_errno("mmap", "stack of a helper process");
  Reading reading{.streams = streams, .begun_by = getpid()};
  // CLONE_VFORK: we wait, so that it may use the thread-local storage of this thread.
  const pid_t child =
      clone(read_in_child, static_cast<uint8_t*>(stack) + stack_size, CLONE_VM | CLONE_FILES | CLONE_VFORK, &reading);
  const int error = errno;
  if (child > 0) waitpid(child, nullptr, __WALL);
  munmap(stack, stack_size);
  if (child < 0) return fail(Error::system("clone", error, "a helper process"));
  return std::move(reading.outcome);
}

Status set_repair(int fd, bool value) {
  auto changed = set(fd, TCP_REPAIR, value ? 1 : 0, "TCP_REPAIR");
  if (changed) return {};
  return fail(std::move(changed).error().advise("repairing TCP connections needs CAP_NET_ADMIN"));
}

Status end_repair(int fd, bool reuse_address) {
  TRY(set_repair(fd, false));
  const int value = reuse_address ? 1 : 0;
  if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &value, sizeof value) != 0) return fail_errno("SO_REUSEADDR");
  return {};
}

}  // namespace stasis::kernel
