// Connections between those who have pages and those who want them: a socket, plain or under TLS (memory/tls_stream.h).
//
// Nobody waits for ever for a peer that has stopped: a read or write that makes no headway within the patience of its
// socket fails. A peer whose machine is gone is noticed by the kernel (keep-alive). SIGPIPE is never raised.
#pragma once

#include <sys/uio.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/result.h"
#include "base/types.h"
#include "base/unique_fd.h"

namespace stasis::memory {

/// An orderly sequence of bytes in both directions. Used by one thread at a time.
class Stream {
 public:
  virtual ~Stream() = default;

  /// Fills the buffer; that the stream ends before is an error.
  Status read(std::span<uint8_t> buffer);
  /// The same; false if the stream has ended before the first byte.
  Result<bool> read_or_end(std::span<uint8_t> buffer);
  /// Whether a read finds bytes without asking the socket: who polls descriptor() has to look here before.
  virtual bool has_buffered() const { return next_ < filled_; }
  /// All of the parts, one after the other.
  virtual Status write(std::span<const iovec> parts) = 0;
  Status write(ByteView bytes);
  /// Says that nothing will follow, and waits until the peer has said so, too; an error if it says anything else.
  Status finish();

  virtual int descriptor() const { return -1; }
  /// "127.0.0.1:4711", for messages.
  const std::string& peer() const { return peer_; }

 protected:
  explicit Stream(std::string peer) : peer_(std::move(peer)) {}
  /// As many bytes as there are, at least one; 0 at the end.
  virtual Result<size_t> read_some(std::span<uint8_t> buffer) = 0;
  virtual Status say_end() = 0;

 private:
  std::string peer_;
  Bytes buffer_;  ///< small reads come from here
  size_t next_ = 0, filled_ = 0;
};

struct Endpoint {
  std::string address;  ///< of IPv4 or IPv6, or a name; empty: all of this machine
  uint16_t port = 0;    ///< listening: 0 stands for any
};
/// "10.0.0.1:27", "[::1]:27".
std::string to_text(const Endpoint&);

/// How long a peer may be silent: none.
inline constexpr std::chrono::seconds no_limit{0};

/// A connection to the first address of the name that answers.
Result<UniqueFd> connect_to(const Endpoint&, std::chrono::seconds patience);

class Listener {
 public:
  static Result<Listener> open(const Endpoint&);
  /// Where it listens, with the port that it has been given.
  const Endpoint& endpoint() const { return endpoint_; }
  int descriptor() const { return fd_.get(); }
  /// The next connection, as long as that may take.
  Result<UniqueFd> accept() const;

 private:
  UniqueFd fd_;
  Endpoint endpoint_;
};

/// "10.0.0.2:5000"; for sockets that are not of the Internet "descriptor 7".
std::string peer_of(int socket);
/// What every connection gets, also those that somebody else has made: SOCK_STREAM of any family.
Status prepare_connection(int socket, std::chrono::seconds patience);

std::unique_ptr<Stream> plain_stream(UniqueFd socket);

/// One recv(2) or sendmsg(2), repeated when a signal came. 0: the peer has ended its side.
Result<size_t> receive_some(int socket, std::span<uint8_t> buffer, const std::string& peer);
Result<size_t> send_some(int socket, std::span<const iovec> parts, const std::string& peer);

}  // namespace stasis::memory
