// Sockets of the internet families (ip(7), ipv6(7), tcp(7), udp(7), raw(7)): what one is. The room is spread over
// inet_socket.cc (capture and images), inet_socket_value.cc (names and comparison), inet_stream.cc (connections in
// images), ended_connection.cc (those that are none any more), inet_socket_validate.cc (what a machine must have),
// inet_socket_restore.cc (the commands that make them again) and inet_options.cc.
//
// Both ends of a connection are restored on their own, in repair mode (kernel/tcp.h): nothing is sent, and neither
// waits for the other. They come to life together, when nothing can go wrong any more (plan::EndRepair).
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "kernel/tcp.h"
#include "resource/file_room.h"
#include "resource/inet_options.h"
#include "resource/multicast.h"
#include "resource/socket_options.h"

namespace stasis::resource {

/// InetSocket::shutdown.
constexpr uint32_t shut_read = 1, shut_write = 2;

struct InetSocket final : model::KindValue {
  uint32_t number = 0;  ///< by which its stream is found in the images
  InetKind what;
  int state = 0;  ///< TCP_*; of other protocols TCP_ESTABLISHED (connected) or TCP_CLOSE
  kernel::Endpoint local, remote;
  uint32_t backlog = 0;
  bool only_ipv6 = false;
  uint32_t shutdown =
      0;  ///< receives nothing more (shut_read), sends nothing more (shut_write); what FINs do is left out
  /// No device has its address, and no option says now that this may be (IP_FREEBIND).
  bool bound_freely = false;
  struct Ids {
    uint32_t uid = 0, gid = 0;
    friend bool operator==(const Ids&, const Ids&) = default;
  };
  std::optional<Ids> owner;  ///< fstat; who may share its port (SO_REUSEPORT). Nothing: an image does not say
  SocketOptions options;
  InetOptions inet_options;
  std::vector<Membership> memberships;
  /// Of a connection, or one that begins. Nothing: it is restored closed.
  std::optional<kernel::TcpStream> stream;
  /// What is left of a connection that has ended (ended_connection.h).
  struct Ended {
    Bytes unread;
    uint32_t error = 0;  ///< that waits to be reported: errno(3)
    friend bool operator==(const Ended&, const Ended&) = default;
  };
  std::optional<Ended> ended;

  // Derived from what all of them are; not compared.
  bool shares_port = false;  ///< with other sockets of TCP that are bound or listen

  bool is_tcp() const { return what.type == SOCK_STREAM && what.protocol == IPPROTO_TCP; }
  bool is_ping() const {
    return what.type == SOCK_DGRAM && (what.protocol == IPPROTO_ICMP || what.protocol == IPPROTO_ICMPV6);
  }
  bool is_listening() const;
  /// It is a connection, or on its way to one.
  bool has_connection() const;
  kernel::Connection connection() const { return {local, remote}; }
  std::string_view kind() const override { return "inet socket"; }
  bool equals(const model::KindValue& other) const override;
  std::string describe() const override;
};

const FileRoom& inet_socket_room();

/// tcp-stream-<number>.img
Status encode_stream(uint32_t number, const kernel::TcpStream&, const image::Directory&);
/// Nothing, if there is no such file.
Result<std::optional<kernel::TcpStream>> decode_stream(uint32_t number, const image::Directory&);

/// Whether nobody has read or written in between. What goes on by itself may differ: clocks, windows, and how far bytes
/// have come on their way from what one end has written to what the other has received.
bool is_same_stream(const kernel::TcpStream&, const kernel::TcpStream&);

/// Whether it may be bound to an address that no device has.
bool is_bound_anywhere(const InetSocket&);
/// 0, or why a socket like it cannot be bound to that.
int try_to_bind(const InetSocket&, const kernel::Endpoint&);
/// Whether addresses, devices, ports and groups can be had on this machine.
void validate_inet_sockets(const model::Application&, Diagnostics&);

/// Commands: the socket with all that it has; a connection stays in repair mode.
void make_inet_socket(const plan::Placement&, plan::Sink&);
/// What a socket may have only when all others are there: it does not share its port any more.
void start_inet_socket(const model::OpenDescription&, int fd, plan::Sink&);
/// The socket becomes the state of the description, and what follows from it is noted there: whether it starts last,
/// whether it is in repair mode.
void set_state(model::OpenDescription&, std::shared_ptr<InetSocket>);

/// All connections of the application, as the packet filter knows them.
std::vector<kernel::Connection> connections_of(const model::Application&);
/// --tcp-close: every connection is restored closed.
void close_connections(model::Application&);
/// What the options of a restore do not allow.
void check_connections(const model::Application&, bool established_allowed, Diagnostics&);

}  // namespace stasis::resource
