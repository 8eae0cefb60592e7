// The commands that make internet sockets again, and the last step, which brings connections to life.
//
// Ports are shared while sockets are made: a listening socket and the connections that it has accepted have the same
// one, whether SO_REUSEADDR allows that or not, and come in any order. So all have that option until everybody is
// complete. Sockets that listen, where
// there are several on a port, have SO_REUSEPORT until then.
//
// What a connection has not sent yet must not be sent here either: while the peer's window is taken for 0, the kernel
// keeps it (net/ipv4/tcp_output.c, tcp_snd_wnd_test).
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/tcp.h>
#include <poll.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "kernel/nf_tables.h"
#include "resource/anonymous_room.h"
#include "resource/inet_socket.h"
#include "resource/tcp_segment.h"

namespace stasis::resource {
namespace {

using plan::call;
using plan::Expectation;
using plan::expecting;

enum State { established = 1, syn_sent = 2, fin_wait_2 = 5, last_ack = 9, listening = 10 };
enum Queue { no_queue, receive_queue, send_queue };
constexpr int repair_off_silently = -1;          // TCP_REPAIR_OFF_NO_WP
constexpr uint32_t plenty = 0x3fffffff;          // of buffer space, while queues are filled
constexpr uint64_t at_current_position = ~0ull;  // of write_fully

/// TCP options, RFC 793 and 7323.
enum OptionCode : uint32_t { segment_size = 2, window_scale = 3, selective_acks = 4, timestamps = 8 };

class Builder {
 public:
  Builder(const InetSocket& socket, int fd, int scratch, plan::Calls& calls)
      : socket_(socket), fd_(fd), scratch_(scratch), calls_(calls) {}

  /// The descriptor is there, with its flags.
  void build() {
    if (const auto& owner = socket_.owner) add(call(SYS_fchown, fd_, owner->uid, owner->gid));
    set_before_binding();
    if (socket_.stream && socket_.state != syn_sent)
      connect_in_repair();
    else if (socket_.stream)
      begin_to_connect();
    else if (socket_.ended)
      end_like_before();
    else if (!socket_.has_connection())
      bind_and_connect();
    if (socket_.bound_freely) bind_freely(false);
    add_socket_options(socket_.options, fd_, calls_);
    // A socket that is not connected keeps it, and the call fails nevertheless (net/ipv4/af_inet.c, inet_shutdown).
    const uint32_t shutdown = socket_.has_connection() && !socket_.stream ? 3 : socket_.shutdown;
    if (shutdown != 0) add(expecting(call(SYS_shutdown, fd_, shutdown - 1), Expectation::Kind::success_or, -ENOTCONN));
  }

 private:
  void add(plan::Call made) { calls_.push_back(std::move(made)); }
  void expect(size_t result, plan::Call made) {
    add(expecting(std::move(made), Expectation::Kind::exactly, static_cast<int64_t>(result)));
  }
  template <typename T>
  void set(int level, int option, const T& value) {
    add(call(SYS_setsockopt, fd_, level, option, plan::struct_in(value), sizeof value));
  }
  void set_tcp(int option, int value) { set(IPPROTO_TCP, option, value); }
  void name(uint32_t number, const kernel::Endpoint& endpoint, Expectation::Kind kind = Expectation::Kind::success) {
    const Bytes address = kernel::socket_address(endpoint);
    add(expecting(call(number, fd_, plan::In{address}, address.size()), kind));
  }

  /// What decides whether it may be bound, and where its packets go.
  void set_before_binding() {
    if (socket_.what.family == AF_INET6 && socket_.what.type != SOCK_RAW)
      set(SOL_IPV6, IPV6_V6ONLY, socket_.only_ipv6 ? 1 : 0);
    set(SOL_SOCKET, SO_REUSEADDR, 1);
    const auto& options = socket_.options;
    for (const int early : {SO_REUSEPORT, SO_MARK}) {
      if (const auto value = options.values.find(early); value != options.values.end())
        set(SOL_SOCKET, early, value->second);
    }
    if (!options.device.empty()) {
      add(call(SYS_setsockopt, fd_, SOL_SOCKET, SO_BINDTODEVICE, plan::text(options.device),
               options.device.size() + 1));
    }
    if (socket_.shares_port) set(SOL_SOCKET, SO_REUSEPORT, 1);
    add_inet_options(socket_.inet_options, socket_.what, fd_, calls_);
    if (socket_.bound_freely) bind_freely(true);
  }
  void bind_freely(bool value) {
    if (socket_.what.family == AF_INET6)
      set(SOL_IPV6, IPV6_FREEBIND, value ? 1 : 0);
    else
      set(SOL_IP, IP_FREEBIND, value ? 1 : 0);
  }

  void bind_and_connect() {
    const bool has_name = socket_.what.type == SOCK_RAW ? socket_.local.has_address()
                                                        : socket_.local.port != 0 || socket_.local.has_address();
    // A connection that has ended has given its port back (net/ipv4/tcp.c, tcp_set_state).
    const bool has_ended = socket_.is_tcp() && socket_.shutdown != 0;
    if (has_name && !has_ended) name(SYS_bind, socket_.local);
    add_memberships(socket_.memberships, socket_.what.family, fd_, calls_);
    if (socket_.is_listening()) add(call(SYS_listen, fd_, socket_.backlog));
    if (socket_.state == established && !socket_.is_tcp()) name(SYS_connect, socket_.remote);
  }

  void set_sequence(Queue queue, uint32_t sequence) {
    set_tcp(TCP_REPAIR_QUEUE, queue);
    set(IPPROTO_TCP, TCP_QUEUE_SEQ, sequence);
  }

  /// The same sequence number as before: the peer may have answered.
  void begin_to_connect() {
    set_tcp(TCP_REPAIR, 1);
    name(SYS_bind, socket_.local);
    set_sequence(send_queue, socket_.stream->send_sequence - 1);
    set_tcp(TCP_REPAIR, repair_off_silently);
    set(SOL_SOCKET, SO_REUSEADDR, 1);
    add(call(SYS_fcntl, fd_, F_GETFL, 0));
    add(call(SYS_fcntl, fd_, F_SETFL, O_NONBLOCK));
    // Whatever comes of it, the program learns.
    name(SYS_connect, socket_.remote, Expectation::Kind::anything);
    add(call(SYS_fcntl, fd_, F_SETFL, plan::ResultOf{-3}));
  }

  void connect_in_repair() {
    const auto& stream = *socket_.stream;
    const uint32_t sent_fin = kernel::has_sent_fin(socket_.state) ? 1 : 0;
    const uint32_t received_fin = kernel::has_received_fin(socket_.state) ? 1 : 0;
    first_received_ = stream.receive_sequence - static_cast<uint32_t>(stream.received.size()) - received_fin;
    first_written_ = stream.send_sequence - static_cast<uint32_t>(stream.written.size()) - sent_fin;
    set_tcp(TCP_REPAIR, 1);
    name(SYS_bind, socket_.local);
    set_sequence(receive_queue, first_received_);
    set_sequence(send_queue, first_written_);
    connect_with_segments_of(stream.largest_segment);
    set_agreed_options();
    fill_queues();
    if (received_fin != 0 && sent_fin == 0) receive_fin();
    if (sent_fin != 0 && socket_.state != last_ack) send_fin();
    if (socket_.state == last_ack) receive_fin(), send_fin();
    if (received_fin != 0 && sent_fin != 0 && socket_.state != last_ack) receive_fin();
    if (socket_.state == fin_wait_2)
      receive({.sequence = stream.receive_sequence, .acknowledges = stream.send_sequence}, 0);
    set_window(stream.window ? stream.window->send : 0, 0);
  }

  /// A connection with nobody, at the own address and a port that no other of these has: whom it was with a closed
  /// socket tells nobody.
  void end_like_before() {
    constexpr uint32_t first = 1, ports = 65535;
    const auto& unread = socket_.ended->unread;
    peer_ = socket_.local;
    for (uint32_t at = socket_.number; peer_.port == socket_.local.port; ++at)
      peer_.port = static_cast<uint16_t>(1 + at % ports);
    set_tcp(TCP_REPAIR, 1);
    name(SYS_bind, socket_.local);
    set_sequence(receive_queue, first), set_sequence(send_queue, first);
    name(SYS_connect, peer_);
    if (!unread.empty()) make_room(SO_RCVBUF, SO_RCVBUFFORCE);
    set_tcp(TCP_REPAIR_QUEUE, receive_queue);
    write(unread);
    set_tcp(TCP_REPAIR_QUEUE, no_queue);
    auto next = static_cast<uint32_t>(first + unread.size());
    if (socket_.ended->error == EPIPE) receive({.sequence = next++, .acknowledges = first, .fin = true}, POLLRDHUP);
    receive({.sequence = next, .acknowledges = first, .reset = true}, POLLHUP);
    set_tcp(TCP_REPAIR, repair_off_silently);
    set(SOL_SOCKET, SO_REUSEADDR, 1);
    const uint32_t error = 0, size = sizeof error;
    if (socket_.ended->error == 0)  // it has been told
      add(call(SYS_getsockopt, fd_, SOL_SOCKET, SO_ERROR, plan::InOut{bytes_of(error)}, plan::InOut{bytes_of(size)}));
  }

  /// How large the segments are that it sends, a socket finds out when it connects (net/ipv4/tcp_output.c,
  /// tcp_connect_init). What is agreed upon is repaired later and does not change that: it would be 536 bytes for good.
  void connect_with_segments_of(uint32_t size) {
    constexpr uint32_t smallest = 88, largest = 32767;  // TCP_MIN_MSS, MAX_TCP_WINDOW
    set_tcp(TCP_MAXSEG, static_cast<int>(std::clamp(size, smallest, largest)));
    name(SYS_connect, socket_.remote);
    set_tcp(TCP_MAXSEG, 0);
  }

  void set_agreed_options() {
    const auto& stream = *socket_.stream;
    std::vector<tcp_repair_opt> agreed;
    if ((stream.options & TCPI_OPT_SACK) != 0) agreed.push_back({selective_acks, 0});
    if ((stream.options & TCPI_OPT_WSCALE) != 0)
      agreed.push_back({window_scale, static_cast<uint32_t>(stream.send_scale | stream.receive_scale << 16)});
    if ((stream.options & TCPI_OPT_TIMESTAMPS) != 0) agreed.push_back({timestamps, 0});
    agreed.push_back({segment_size, stream.largest_segment});
    const auto* first = reinterpret_cast<const uint8_t*>(agreed.data());
    const size_t size = agreed.size() * sizeof agreed[0];
    add(call(SYS_setsockopt, fd_, IPPROTO_TCP, TCP_REPAIR_OPTIONS, plan::In{Bytes(first, first + size)}, size));
    if ((stream.options & TCPI_OPT_TIMESTAMPS) != 0) set(IPPROTO_TCP, TCP_TIMESTAMP, stream.timestamp);
  }

  /// So that a segment is taken whose bytes end there, and nothing is sent.
  void open_window(uint32_t sequence, uint32_t ahead) {
    const uint32_t largest = socket_.stream->window->largest_send;
    set(IPPROTO_TCP, TCP_REPAIR_WINDOW, tcp_repair_window{sequence, 0, largest, ahead, sequence});
  }
  /// `fins`: that come later.
  void set_window(uint32_t send, uint32_t fins) {
    if (!socket_.stream->window) return;
    auto window = *socket_.stream->window;
    window.receive += fins, window.receive_update -= fins;
    set(IPPROTO_TCP, TCP_REPAIR_WINDOW,
        tcp_repair_window{window.update_sequence, send, window.largest_send, window.receive, window.receive_update});
  }

  void write(ByteView bytes) {
    if (bytes.empty()) return;
    add(call(plan::Call::write_fully, fd_, plan::In{Bytes(bytes.begin(), bytes.end())}, bytes.size(),
             at_current_position));
  }

  void make_room(int option, int forcing) {
    add(set_option(fd_, option, plenty));
    add(expecting(set_option(fd_, forcing, plenty), Expectation::Kind::anything));
  }

  /// Only a segment makes a byte urgent: those around it are written. Before anything else is in the queues the peer
  /// has nothing to acknowledge.
  void fill_receive_queue() {
    const auto& stream = *socket_.stream;
    const ByteView received = stream.received;
    const size_t before = std::min<size_t>(stream.mark ? stream.mark->at : received.size(), received.size());
    set_tcp(TCP_REPAIR_QUEUE, receive_queue);
    write(received.first(before));
    if (!stream.mark) return;
    receive_urgent(*stream.mark, received.subspan(before).first(std::min<size_t>(1, received.size() - before)));
    set_tcp(TCP_REPAIR_QUEUE, receive_queue);
    if (before < received.size()) write(received.subspan(before + 1));
  }

  /// `byte`: none, if it is only announced. That it is no event shows; should the segment come late all the same, its
  /// window of 0 lasts until the peer answers the end of repair mode. A socket that takes itself for part of a talk
  /// (TCP_QUICKACK) does not acknowledge at once: its peer may not be there yet.
  void receive_urgent(const kernel::UrgentMark& mark, ByteView byte) {
    const uint32_t sequence = first_received_ + mark.at;
    const auto there = static_cast<uint32_t>(socket_.stream->received.size());
    set_tcp(TCP_REPAIR_QUEUE, no_queue);
    set_tcp(TCP_QUICKACK, 0);
    const uint32_t next = byte.empty() ? first_received_ + there : sequence;
    open_window(next, byte.empty() ? sequence - next : 1);
    TcpSegment segment{.sequence = sequence, .acknowledges = first_written_, .urgent = true};
    segment.bytes.assign(byte.begin(), byte.end());
    receive(std::move(segment), byte.empty() ? 0 : POLLPRI);
    if (mark.was_read) expect(1, call(SYS_recvfrom, fd_, plan::Out{1}, 1, MSG_OOB, 0, 0));
  }

  /// A part of what was written, which the socket sends, or has sent.
  void send(size_t from, size_t to) {
    const auto& stream = *socket_.stream;
    const ByteView written = stream.written;
    if (const auto urgent = stream.urgent_written; urgent && from <= *urgent && *urgent < to) {
      write(written.subspan(from, *urgent - from));
      const Bytes byte{written[*urgent]};
      expect(1, call(SYS_sendto, fd_, plan::In{byte}, 1, MSG_OOB, 0, 0));
      from = *urgent + 1;
    }
    write(written.subspan(from, to - from));
  }

  void fill_queues() {
    const auto& stream = *socket_.stream;
    const size_t written = stream.written.size(), sent = written - stream.unsent;
    if (!stream.received.empty()) make_room(SO_RCVBUF, SO_RCVBUFFORCE);
    if (written != 0) make_room(SO_SNDBUF, SO_SNDBUFFORCE);
    fill_receive_queue();
    set_tcp(TCP_REPAIR_QUEUE, send_queue);
    send(0, sent);
    set_tcp(TCP_REPAIR_QUEUE, no_queue);
    set_window(0, kernel::has_received_fin(socket_.state) ? 1 : 0);
    if (stream.unsent == 0) return;
    set_tcp(TCP_REPAIR, repair_off_silently);
    send(sent, written);
    set_tcp(TCP_REPAIR, 1);
  }

  /// It has been sent if nothing before it waits to be: the peer may have acknowledged it, which a socket that has not
  /// sent it would not believe (net/ipv4/tcp_input.c, tcp_ack). Otherwise the kernel keeps it, for the window is 0.
  void send_fin() {
    const bool was_sent = socket_.stream->unsent == 0;
    if (was_sent) set_tcp(TCP_REPAIR_QUEUE, send_queue);
    add(call(SYS_shutdown, fd_, SHUT_WR));
    if (was_sent) set_tcp(TCP_REPAIR_QUEUE, no_queue);
  }
  void receive_fin() {
    const auto& stream = *socket_.stream;
    receive({.sequence = stream.receive_sequence - 1, .acknowledges = first_written_, .fin = true}, POLLRDHUP);
  }

  /// The segment is sent as if by the peer; then what it does to the socket is waited for (`events`).
  void receive(TcpSegment segment, short events) {
    segment.from = kernel::as_sent(peer_), segment.to = kernel::as_sent(socket_.local);
    const Bytes bytes = packet_of(segment);
    auto to = segment.to;
    to.port = 0;
    const Bytes address = kernel::socket_address(to);
    add(call(SYS_socket, to.family, SOCK_RAW, IPPROTO_RAW));
    add(call(plan::Call::move_fd, plan::ResultOf{-1}, scratch_, 0));
    add(call(SYS_setsockopt, scratch_, SOL_SOCKET, SO_MARK, plan::struct_in(kernel::repair_mark), sizeof(uint32_t)));
    expect(bytes.size(),
           call(SYS_sendto, scratch_, plan::In{bytes}, bytes.size(), 0, plan::In{address}, address.size()));
    add(call(SYS_close, scratch_));
    if (events == 0) return;
    const pollfd wanted{fd_, events, 0};
    const timespec patience{5, 0};
    expect(1, call(SYS_ppoll, plan::InOut{bytes_of(wanted)}, 1, plan::struct_in(patience), 0, 0));
  }

  const InetSocket& socket_;
  int fd_, scratch_;
  plan::Calls& calls_;
  kernel::Endpoint peer_ = socket_.remote;
  uint32_t first_received_ = 0, first_written_ = 0;  ///< sequence numbers of the queues' beginnings
};

std::vector<std::string> needs(const InetSocket& socket) {
  if (socket.stream || socket.ended) return {"CAP_NET_ADMIN"};
  return {};
}

/// What is open in a descriptor table.
std::set<ObjectId> held_by_tasks(const model::Application& application) {
  std::set<ObjectId> held;
  for (const auto& task : application.tasks) {
    const auto table = application.descriptor_tables.find(task.descriptors);
    if (task.state == model::TaskState::zombie || table == application.descriptor_tables.end()) continue;
    for (const auto& [fd, slot] : table->second.slots) held.insert(slot.description);
  }
  return held;
}

}  // namespace

void set_state(model::OpenDescription& description, std::shared_ptr<InetSocket> socket) {
  const auto& values = socket->options.values;
  description.in_repair = socket->stream && socket->state != syn_sent;
  description.starts_last = !description.in_repair &&
                            (!values.contains(SO_REUSEADDR) || (socket->shares_port && !values.contains(SO_REUSEPORT)));
  description.state = {std::move(socket)};
}

void make_inet_socket(const plan::Placement& placement, plan::Sink& sink) {
  const auto& socket = *placement.description->state.as<InetSocket>();
  plan::Perform perform{socket.describe(), "", needs(socket), {}, {}};
  perform.calls.push_back(call(SYS_socket, socket.what.family, socket.what.type, socket.what.protocol));
  place(placement, perform);
  Builder(socket, placement.fd, placement.scratch, perform.calls).build();
  sink.add(std::move(perform));
}

void start_inet_socket(const model::OpenDescription& description, int fd, plan::Sink& sink) {
  const auto& socket = *description.state.as<InetSocket>();
  plan::Perform perform{fmt::format("leave the port of {} alone", socket.describe()), "", {}, {}, {}};
  const auto end = [&](int option) {
    if (!socket.options.values.contains(option)) perform.calls.push_back(set_option(fd, option, 0));
  };
  end(SO_REUSEADDR);
  if (socket.shares_port) end(SO_REUSEPORT);
  perform.starts.push_back({fd, description.id});
  sink.add(std::move(perform));
}

void close_connections(model::Application& application) {
  for (auto& [id, description] : application.descriptions) {
    const auto* socket = description.state.as<InetSocket>();
    if (socket == nullptr || !socket->stream) continue;
    auto closed = std::make_shared<InetSocket>(*socket);
    closed->stream.reset();
    set_state(description, std::move(closed));
  }
}

void check_connections(const model::Application& application, bool established_allowed, Diagnostics& diagnostics) {
  std::optional<std::set<ObjectId>> held;  // asked for by few trees
  const auto is_held = [&](ObjectId id) {
    if (!held) held = held_by_tasks(application);
    return held->contains(id);
  };
  for (const auto& [id, description] : application.descriptions) {
    const auto* socket = description.state.as<InetSocket>();
    if (socket == nullptr || !socket->has_connection()) continue;
    if (!established_allowed)
      diagnostics.refuse(socket->describe(), "it is a TCP connection",
                         "pass --tcp-established, and it goes on; or --tcp-close, and it is closed");
    else if (!socket->stream)
      diagnostics.refuse(socket->describe(), "the checkpoint does not say how the connection stood",
                         "pass --tcp-close, as was done when it was dumped");
    else if (description.in_repair && !is_held(id))
      diagnostics.refuse(socket->describe(), "the connection is on its way through another socket (SCM_RIGHTS)",
                         "pass --tcp-close");
  }
}

}  // namespace stasis::resource
