// Unix sockets (unix(7)): what one is. The room is spread over unix_socket.cc (capture and images),
// unix_socket_queue.cc (what waits to be received) and unix_socket_restore.cc (the commands that make them again).
#pragma once

#include <sys/socket.h>

#include <optional>
#include <string>
#include <vector>

#include "resource/file_room.h"
#include "resource/socket_options.h"

namespace stasis::resource {

/// What a socket is bound to.
struct UnixName {
  std::string text;       ///< sun_path: an abstract name with its first NUL, a path without its last; empty: no name
  std::string directory;  ///< that a relative path is relative to
  bool unlinked = false;  ///< nothing leads to its file any more
  std::string moved_to;   ///< the path of its file, which has been renamed since; empty: it has not
  uint32_t mode = 0, uid = 0, gid = 0;  ///< of the file

  bool is_path() const { return !text.empty() && text.front() != 0; }
  bool is_relative() const { return is_path() && text.front() != '/'; }
  std::string path() const { return is_relative() ? directory + "/" + text : text; }
  std::string file() const { return moved_to.empty() ? path() : moved_to; }
  friend bool operator==(const UnixName&, const UnixName&) = default;
};
/// Where the relative names of closed sockets are bound for a moment: what they were relative to nobody knows, and
/// nobody is told.
inline constexpr const char* directory_of_closed = "/tmp";
/// For people: "/run/x", "@x"
std::string shown_name(const std::string& text);

/// A datagram or packet; of a stream, a stretch that comes with the same ancillary data.
struct UnixMessage {
  struct Sender {   ///< SCM_CREDENTIALS
    pid_t pid = 0;  ///< -1: not of the tree
    uint32_t uid = 0, gid = 0;
    friend bool operator==(const Sender&, const Sender&) = default;
  };
  Bytes content;
  std::vector<ObjectId> descriptors;  ///< SCM_RIGHTS
  std::optional<Sender> credentials;
  std::string sender_name;  ///< as UnixName::text; of a datagram's or packet's sender
  friend bool operator==(const UnixMessage&, const UnixMessage&) = default;
};

struct UnixSocket final : model::KindValue {
  uint32_t number = 0;  ///< by which sockets refer to each other
  uint32_t inode = 0;   ///< by which users name it; not compared
  int type = SOCK_STREAM;
  bool is_listening = false;
  uint32_t backlog = 0;
  std::vector<uint32_t> pending;  ///< who waits to be accepted, in order
  uint32_t peer = 0;              ///< also: the listening socket that it waits for; 0: none
  bool peer_gone = false;         ///< it is connected to a socket that is closed
  std::string peer_name;          ///< of that one, as UnixName::text
  /// It is connected to a socket outside of the tree, which may stay there: its name, by which it is found again.
  std::optional<std::string> outside;
  struct Ids {
    uint32_t uid = 0, gid = 0;
    friend bool operator==(const Ids&, const Ids&) = default;
  };
  std::optional<Ids> owner;  ///< who has made it (fstat); nothing: an image does not say
  /// SO_PEERCRED, but for the process: who has made the connection's other end, or has it listen.
  std::optional<Ids> peer_ids;
  bool reset = false;     ///< ECONNRESET waits to be reported
  uint32_t shutdown = 0;  ///< 1: receives nothing more, 2: sends nothing more
  UnixName name;
  SocketOptions options;
  std::vector<UnixMessage> queue;
  // Derived from what all of them are; not compared.
  ObjectId together;      ///< those that can only be made together have this number in common
  bool accepted = false;  ///< it has its name from the socket that accepted it
  uint32_t mate = 0;      ///< the other end of the socketpair(2) that it is made as; 0: it is not

  /// Its file has to appear in the end.
  bool is_staged() const { return name.is_path() && !name.unlinked && !accepted; }
  /// It is made as one end of a pair whose other end is closed again.
  bool mate_gone() const {
    if (!peer_gone || accepted) return false;
    return peer_name.empty() ||
           (is_datagram() && name.text.empty() && peer_ids);  // only pairs know of each other's ids
  }

  bool is_datagram() const { return type == SOCK_DGRAM; }
  std::string_view kind() const override { return "unix socket"; }
  bool equals(const model::KindValue& other) const override;
  std::string describe() const override;
};

const FileRoom& unix_socket_room();

/// What waits to be received, without consuming it. A capture only.
Result<std::vector<UnixMessage>> read_unix_queue(CaptureContext&, int fd, int type, const std::string& subject);

/// Once all sockets of the application are known: finds out which belong together, and sets what is derived. Errors
/// name what cannot be, which only images say.
Status link_unix_sockets(model::Application&);

/// Commands: the sockets with their names and connections, and their queues unless these carry descriptors.
Status make_unix_sockets(std::span<const plan::Placement>, plan::Sink&);
/// Queues that carry descriptors, and what comes after the queues.
Status complete_unix_sockets(std::span<const plan::Placement>, const plan::OpenNumbers&, plan::Sink&);
/// Sockets' files appear under their names (stage settle), or not at all.
void settle_unix_sockets(const model::Application&, plan::Sink&);

}  // namespace stasis::resource
