// Internet sockets as values: what they are called, and when two are alike.
#include <fmt/format.h>
#include <netinet/tcp.h>

#include "resource/inet_socket.h"

namespace stasis::resource {

bool InetSocket::is_listening() const { return is_tcp() && state == TCP_LISTEN; }
bool InetSocket::has_connection() const { return is_tcp() && (kernel::is_connected(state) || state == TCP_SYN_SENT); }

/// The options without what the kernel changes while packets come and go: the sizes of a connection's buffers, unless
/// the program has set them (net/ipv4/tcp_input.c, tcp_sndbuf_expand and tcp_rcv_space_adjust).
static SocketOptions settled(const InetSocket& socket) {
  auto options = socket.options;
  constexpr uint32_t send_lock = 1, receive_lock = 2;  // linux/socket.h, SOCK_SNDBUF_LOCK
  const uint32_t locked = options.buffer_lock.value_or(0);
  if (!socket.has_connection()) return options;
  if ((locked & send_lock) == 0) options.send_buffer = 0;
  if ((locked & receive_lock) == 0) options.receive_buffer = 0;
  return options;
}

bool InetSocket::equals(const model::KindValue& other) const {
  const auto* s = dynamic_cast<const InetSocket*>(&other);
  return s != nullptr && number == s->number && what == s->what && state == s->state && local == s->local &&
         remote == s->remote && backlog == s->backlog && only_ipv6 == s->only_ipv6 && shutdown == s->shutdown &&
         bound_freely == s->bound_freely && owner == s->owner && settled(*this) == settled(*s) &&
         inet_options == s->inet_options && memberships == s->memberships && ended == s->ended &&
         stream.has_value() == s->stream.has_value() && (!stream || is_same_stream(*stream, *s->stream));
}

std::string InetSocket::describe() const {
  constexpr const char* states[] = {"", "established", "connecting",  "",        "half-closed", "half-closed",
                                    "", "closed",      "half-closed", "closing", "listening",   "closing"};
  const std::string_view protocol = what.type == SOCK_RAW                   ? "raw"
                                    : what.protocol == IPPROTO_TCP          ? "tcp"
                                    : what.protocol == IPPROTO_UDP          ? "udp"
                                    : what.protocol == int{IPPROTO_UDPLITE} ? "udp-lite"
                                                                            : "ping";
  std::string text = fmt::format("{} socket {}", protocol, kernel::to_text(local));
  if (remote.has_address()) text += " – " + kernel::to_text(remote);
  if (is_tcp() && state < static_cast<int>(std::size(states))) text += fmt::format(", {}", states[state]);
  if (stream) text += fmt::format(", {} bytes received, {} written", stream->received.size(), stream->written.size());
  if (ended) text += fmt::format(", {} bytes received", ended->unread.size());
  return text;
}

std::vector<kernel::Connection> connections_of(const model::Application& application) {
  std::vector<kernel::Connection> connections;
  for (const auto& [id, description] : application.descriptions) {
    const auto* socket = description.state.as<InetSocket>();
    if (socket != nullptr && socket->has_connection()) connections.push_back(socket->connection());
  }
  return connections;
}

}  // namespace stasis::resource
