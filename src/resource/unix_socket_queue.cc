// What waits in a unix socket to be received.
//
// MSG_PEEK consumes nothing. It looks at the first message only, unless SO_PEEK_OFF says where to look: that is set
// where there is more than one, and put back. Descriptors in flight come out as duplicates (net/unix/af_unix.c,
// unix_peek_fds), and are told apart from those in tables by the description behind them.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/un.h>

#include <algorithm>
#include <cstring>

#include "resource/unix_socket.h"

namespace stasis::resource {
namespace {

constexpr int message_pidfd = 4;       ///< SCM_PIDFD
constexpr size_t control_size = 8192;  ///< SCM_MAX_FD descriptors, credentials, a security label, time stamps

/// One look.
struct Piece {
  ssize_t length = 0;  ///< of the whole message; below 0: there is none
  Bytes content;
  std::vector<UniqueFd> descriptors;
  std::optional<ucred> credentials;
  std::string sender_name;
};

class QueueReader {
 public:
  QueueReader(CaptureContext& context, int fd, int type, const std::string& subject)
      : context_(context), fd_(fd), type_(type), subject_(subject) {
    socklen_t size = sizeof original_offset_;
    getsockopt(fd_, SOL_SOCKET, SO_PEEK_OFF, &original_offset_, &size);
  }
  ~QueueReader() {
    if (changed_) set_offset(original_offset_);
  }
  QueueReader(const QueueReader&) = delete;

  Result<std::vector<UnixMessage>> run() {
    if (type_ == SOCK_STREAM)
      TRY(read_stream());
    else
      TRY(read_messages());
    return std::move(messages_);
  }

 private:
  bool set_offset(int offset) { return setsockopt(fd_, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset) == 0; }

  /// What begins at the offset, at most so many bytes of it.
  Result<Piece> peek(uint64_t offset, size_t most) {
    // Without an offset the first message is the one that is seen.
    if (offset != 0 || !messages_.empty() || original_offset_ >= 0 || changed_) {
      changed_ = true;
      if (!set_offset(static_cast<int>(offset))) return fail_errno("SO_PEEK_OFF", subject_);
    }
    Piece piece;
    piece.content.resize(most);
    iovec vector{piece.content.data(), most};
    sockaddr_un name{};
    alignas(cmsghdr) char control[control_size];
    msghdr message{};
    message.msg_name = &name, message.msg_namelen = sizeof name;
    message.msg_iov = &vector, message.msg_iovlen = 1;
    message.msg_control = control, message.msg_controllen = sizeof control;
    piece.length = recvmsg(fd_, &message, MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC | MSG_CMSG_CLOEXEC);
    if (piece.length < 0 && errno == EAGAIN) return piece;
    if (piece.length < 0) return fail_errno("recvmsg", subject_);
    take_control(message, piece);
    if ((message.msg_flags & MSG_CTRUNC) != 0) {
      return fail(Error::system("look at descriptors in flight", EMFILE, subject_)
                      .advise("raise the limit of open files (ulimit -n) for stasis"));
    }
    piece.content.resize(std::min(most, static_cast<size_t>(piece.length)));
    if (message.msg_namelen > sizeof name.sun_family) {
      piece.sender_name.assign(name.sun_path, message.msg_namelen - sizeof name.sun_family);
      if (piece.sender_name.front() != 0) piece.sender_name.resize(strnlen(name.sun_path, sizeof name.sun_path));
    }
    return piece;
  }

  static void take_control(msghdr& message, Piece& piece) {
    for (auto* one = CMSG_FIRSTHDR(&message); one != nullptr; one = CMSG_NXTHDR(&message, one)) {
      const size_t length = one->cmsg_len - CMSG_LEN(0);
      if (one->cmsg_level != SOL_SOCKET) continue;
      if (one->cmsg_type == SCM_RIGHTS || one->cmsg_type == message_pidfd) {
        for (size_t at = 0; at + sizeof(int) <= length; at += sizeof(int)) {
          int fd = -1;
          std::memcpy(&fd, CMSG_DATA(one) + at, sizeof fd);
          UniqueFd owned(fd);
          if (one->cmsg_type == SCM_RIGHTS) piece.descriptors.push_back(std::move(owned));
        }
      } else if (one->cmsg_type == SCM_CREDENTIALS && length == sizeof(ucred)) {
        std::memcpy(&piece.credentials.emplace(), CMSG_DATA(one), sizeof(ucred));
      }
    }
  }

  /// Nothing is read beyond what is there: an error that waits to be reported (SO_ERROR) would be taken away. Bytes
  /// without descriptors come together with those behind them that have some, and however little is asked for, MSG_PEEK
  /// goes on to these (net/unix/af_unix.c, unix_stream_read_generic): where they begin cannot be seen, only where they
  /// end.
  Status read_stream() {
    int total = 0;
    if (ioctl(fd_, FIONREAD, &total) != 0) return fail_errno("FIONREAD", subject_);
    for (uint64_t offset = 0; offset < static_cast<uint64_t>(total);) {
      const size_t left = static_cast<uint64_t>(total) - offset;
      auto piece = TRY(peek(offset, left));
      if (piece.length <= 0)
        return fail(Error::conflict("read the queue", "it has become shorter meanwhile", subject_));
      offset += piece.content.size();
      TRY(keep(std::move(piece)));
    }
    return {};
  }

  Status read_messages() {
    int total = 0;
    if (ioctl(fd_, FIONREAD, &total) != 0) return fail_errno("FIONREAD", subject_);
    size_t most = 1 << 16;
    for (uint64_t offset = 0;;) {
      auto piece = TRY(peek(offset, most));
      if (piece.length < 0) return {};
      if (static_cast<size_t>(piece.length) > most) {
        most = static_cast<size_t>(piece.length);
        piece = TRY(peek(offset, most));
      }
      // The end of a connection looks like an empty packet, to the application as well.
      if (type_ == SOCK_SEQPACKET && piece.length == 0 && offset == static_cast<uint64_t>(total)) return {};
      offset += static_cast<uint64_t>(piece.length);
      TRY(keep(std::move(piece)));
    }
  }

  Status keep(Piece piece) {
    UnixMessage message;
    message.content = std::move(piece.content);
    if (type_ != SOCK_STREAM) message.sender_name = std::move(piece.sender_name);
    if (piece.credentials && piece.credentials->pid != 0) message.credentials = sender(*piece.credentials);
    for (auto& fd : piece.descriptors)
      message.descriptors.push_back(TRY(context_.captured_in_flight(std::move(fd), subject_)));
    const bool continues = type_ == SOCK_STREAM && !messages_.empty() && messages_.back().descriptors.empty() &&
                           message.descriptors.empty() && messages_.back().credentials == message.credentials;
    if (continues)
      messages_.back().content.insert(messages_.back().content.end(), message.content.begin(), message.content.end());
    else
      messages_.push_back(std::move(message));
    return {};
  }

  UnixMessage::Sender sender(const ucred& credentials) const {
    const auto known = context_.host_to_tree.find(credentials.pid);
    const pid_t pid = known == context_.host_to_tree.end() ? -1 : known->second;
    return {pid, credentials.uid, credentials.gid};
  }

  CaptureContext& context_;
  int fd_, type_;
  const std::string& subject_;
  int original_offset_ = -1;
  bool changed_ = false;
  std::vector<UnixMessage> messages_;
};

}  // namespace

Result<std::vector<UnixMessage>> read_unix_queue(CaptureContext& context, int fd, int type,
                                                 const std::string& subject) {
  return QueueReader(context, fd, type, subject).run();
}

}  // namespace stasis::resource
