#include "resource/ended_connection.h"

#include <fmt/format.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "resource/kernel_access.h"
#include "resource/socket_probe.h"

namespace stasis::resource {
namespace {

/// Which errors the end of a connection leaves (net/ipv4/tcp_input.c, tcp_reset): without and with a FIN before it.
constexpr uint32_t possible_errors[] = {0, ECONNRESET, EPIPE};

/// Reading SO_ERROR would take it away.
Result<uint32_t> pending_error(CaptureContext& context, int fd) {
  const auto& memory = context.kept<KernelAccess>().memory;
  if (!memory || !memory->has("sock", "sk_err")) return uint32_t{ECONNRESET};
  return static_cast<uint32_t>(TRY(memory->get(TRY(memory->socket(fd)), "sock", "sk_err")));
}

/// The socket is as it was afterwards. Less than `size`: a mark of urgent data is in the way.
Result<Bytes> peek(int fd, int size, const std::string& subject) {
  int offset = -1, none = -1;
  socklen_t length = sizeof offset;
  const bool moves = getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &offset, &length) == 0 && offset >= 0;
  if (moves && setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &none, sizeof none) != 0)
    return fail_errno("SO_PEEK_OFF", subject);
  Bytes bytes(static_cast<size_t>(size));
  const ssize_t count = recv(fd, bytes.data(), bytes.size(), MSG_PEEK | MSG_DONTWAIT);
  const int error = errno;
  if (moves) setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset);
  if (count < 0) return fail(Error::system("look at what has been received", error, subject));
  bytes.resize(static_cast<size_t>(count));
  return bytes;
}

}  // namespace

Status look_at_ended(CaptureContext& context, const std::string& subject, int fd, InetSocket& socket) {
  const short events = poll_events(fd, POLLRDHUP);
  if ((events & POLLRDHUP) == 0) return {};  // one that was never connected has no peer that could have hung up
  socket.shutdown = shut_read | shut_write;
  InetSocket::Ended ended;
  if ((events & POLLERR) != 0) ended.error = TRY(pending_error(context, fd));
  if (std::ranges::find(possible_errors, ended.error) == std::end(possible_errors)) {
    context.diagnostics.warn(subject, "an error that waits to be reported (SO_ERROR) is lost",
                             "the program finds the connection closed");
    ended.error = 0;
  }
  int waiting = 0;
  if (ioctl(fd, FIONREAD, &waiting) == 0 && waiting > 0) ended.unread = TRY(peek(fd, waiting, subject));
  if (ended.unread.size() != static_cast<size_t>(waiting))
    context.diagnostics.refuse_for_now(
        subject, "the connection has ended, and urgent data (MSG_OOB) is among what has not been received",
        "let the program receive it");
  if (ended != InetSocket::Ended{})
    socket.ended = std::move(ended);
  else
    // It has given its port back (net/ipv4/tcp.c, tcp_set_state), but goes on to tell it: no call leads there but the
    // end of a connection.
    socket.local = {.family = socket.what.family};
  return {};
}

void encode_ended(const InetSocket& socket, socket_more_entry& more) {
  if (!socket.ended) return;
  const auto& unread = socket.ended->unread;
  more.set_unread(reinterpret_cast<const char*>(unread.data()), unread.size());
  more.set_pending_error(socket.ended->error);
}

Status decode_ended(const socket_more_entry& more, InetSocket& socket) {
  if (!more.has_unread() && !more.has_pending_error()) return {};
  const auto reject = [&](std::string_view field, std::string cause) {
    return fail(Error::invalid("decode inet socket", std::move(cause),
                               fmt::format("sockets-more.img, id {}, field {}", more.id(), field)));
  };
  const std::string_view field = more.has_unread() ? "unread" : "pending_error";
  if (!socket.is_tcp() || socket.state != TCP_CLOSE) return reject(field, "it is no connection that has ended");
  if (socket.local.port == 0 || !socket.local.has_address()) return reject(field, "the connection had no address");
  if (std::ranges::find(possible_errors, more.pending_error()) == std::end(possible_errors))
    return reject("pending_error", fmt::format("no connection ends with error {}", more.pending_error()));
  socket.ended = {Bytes(more.unread().begin(), more.unread().end()), more.pending_error()};
  return {};
}

}  // namespace stasis::resource
