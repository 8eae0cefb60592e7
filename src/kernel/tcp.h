// What the kernel tells of TCP sockets, and of established ones in repair mode (TCP_REPAIR, linux/tcp.h;
// net/ipv4/tcp.c).
//
// A socket in repair mode sends nothing, lets its queues and sequence numbers be read and written, and is gone without
// a word when it is closed. Turning it off sets SO_REUSEADDR to 0.
#pragma once

#include <optional>
#include <span>

#include "base/result.h"
#include "kernel/inet.h"

namespace stasis::kernel {

struct TcpInfo {
  uint8_t state = 0;    ///< TCP_ESTABLISHED …
  uint8_t options = 0;  ///< TCPI_OPT_*
  uint8_t send_scale = 0, receive_scale = 0;
  uint32_t pending = 0, backlog = 0;  ///< of a listening one: how many wait to be accepted, and how many may
};
Result<TcpInfo> tcp_info(int fd);

/// Sequence numbers of TCP_REPAIR_WINDOW.
struct TcpWindow {
  uint32_t update_sequence = 0;  ///< snd_wl1: of the segment that the peer's window was last told by
  uint32_t send = 0, largest_send = 0;
  uint32_t receive = 0, receive_update = 0;  ///< rcv_wnd and rcv_wup
  friend bool operator==(const TcpWindow&, const TcpWindow&) = default;
};

/// The mark that urgent data leaves in what is received (tcp(7), sockatmark(3)): receiving stops there. One that has
/// been passed is none.
struct UrgentMark {
  uint32_t at = 0;  ///< of the urgent byte, counted from the first one unread; not before what is there: it still comes
  bool was_read = false;  ///< out of band; not yet is the usual thing
  friend bool operator==(const UrgentMark&, const UrgentMark&) = default;
};

/// One end of a connection.
struct TcpStream {
  uint32_t receive_sequence = 0;  ///< of the next byte that comes, or behind the FIN that has come
  uint32_t send_sequence = 0;     ///< behind what has been written, or behind the FIN that was written
  Bytes received, written;        ///< not yet read; not yet acknowledged
  uint32_t unsent = 0;            ///< bytes at the end of `written` that were never sent
  uint8_t options = 0;            ///< TCPI_OPT_*: what the ends have agreed upon
  uint8_t send_scale = 0, receive_scale = 0;
  uint32_t largest_segment = 0;  ///< mss_clamp
  uint32_t timestamp = 0;        ///< of its own clock (TCP_TIMESTAMP)
  std::optional<TcpWindow> window;
  std::optional<UrgentMark> mark;
  std::optional<uint32_t> urgent_written;  ///< the byte of `written` that the peer is told, or is to be told, is urgent
  friend bool operator==(const TcpStream&, const TcpStream&) = default;
};

/// Whether what waits behind a mark can be looked at (SO_PEEK_OFF of TCP, Linux 6.9).
bool can_look_behind_marks(int fd);

/// Reads sockets that nobody uses meanwhile and whose packets are dropped, and leaves them as they were. Each is in
/// repair mode for a moment, in which its owner could neither send nor receive: a process of our own does this, which
/// shares all memory and descriptors, and has each socket out of repair mode again even if stasis is killed meanwhile.
struct StreamToRead {
  int fd = -1;
  std::string subject;
  TcpStream stream = {};  ///< the result, but for what no call tells: marks of bytes that still come, `urgent_written`
};
Status read_streams(std::span<StreamToRead>);

Status set_repair(int fd, bool value);
/// Ends repair mode; the peer is told that the connection goes on (a window probe).
Status end_repair(int fd, bool reuse_address);

/// States in which a FIN has been written, or has come.
bool has_sent_fin(int state);
bool has_received_fin(int state);
/// Whether there is a connection: all but TCP_CLOSE, TCP_LISTEN and TCP_SYN_SENT.
bool is_connected(int state);

}  // namespace stasis::kernel
