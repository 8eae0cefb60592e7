// The commands that make unix sockets again.
//
// All sockets that have to do with each other are made by one process (UnixSocket::together): what is bound before
// somebody connects to it, and sent before a direction is shut down, is a matter of its own order. First come the
// sockets, their names and connections; then, when descriptors in flight are there as well, queues, the ends of peers
// that have gone, and options, which would be in the way before.
//
// A file that a socket is bound to appears at its place only when everything is complete: bind(2) needs the name for
// itself, so whatever has it stands aside for that moment. Until then, and where the file is gone for good, the socket
// is reached through a descriptor of the file (/proc/self/fd).
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "resource/descriptors.h"
#include "resource/unix_socket.h"

namespace stasis::resource {
namespace {

using plan::call;
using plan::Expectation;
using plan::expecting;
using plan::ResultOf;
using plan::WordOf;

constexpr std::string_view aside = ".stasis-aside", staged = ".stasis-new";
constexpr uint32_t plenty = 0x3fffffff;  ///< of buffer space, while queues are filled
constexpr unsigned no_replace = 1;       ///< RENAME_NOREPLACE
constexpr uint32_t settable = O_APPEND | O_NONBLOCK | O_ASYNC | O_DIRECT | O_NOATIME;  ///< F_SETFL's

Bytes address(const std::string& text) {
  Bytes bytes = bytes_of(sa_family_t{AF_UNIX});
  bytes.insert(bytes.end(), text.begin(), text.end());
  if (text.front() != 0 && text.size() < sizeof(sockaddr_un{}.sun_path)) bytes.push_back(0);
  return bytes;
}

/// A socket that is made, and numbers for what it takes.
struct End {
  const UnixSocket* socket = nullptr;
  const model::OpenDescription* description = nullptr;
  int fd = -1, scratch = -1;

  int gone_peer() const { return scratch; }
  int file() const { return scratch + 1; }
  int helper() const { return scratch + 2; }
  int helper_file() const { return scratch + 3; }
  /// Somebody may have to be led to its file.
  bool keeps_file() const {
    return socket->name.is_path() && !socket->accepted && (socket->is_datagram() || socket->is_listening);
  }
  bool pairs_with_gone() const { return socket->mate_gone(); }
};

class Builder {
 public:
  Builder(std::span<const plan::Placement> placements, Pid maker) : maker_(maker) {
    for (const auto& placement : placements) {
      const auto* socket = placement.description->state.as<UnixSocket>();
      ends_[socket->number] = {socket, placement.description, placement.fd, placement.scratch};
    }
  }

  plan::Calls take() { return std::move(calls_); }
  std::string purpose() const {
    return fmt::format("{} unix sockets with descriptor {}", ends_.size(), ends_.begin()->second.fd);
  }

  /// Images may know of sockets that nobody has open.
  Status check() const {
    for (const auto& [number, end] : ends_) {
      auto needed = end.socket->pending;
      if (end.socket->mate != 0) needed.push_back(end.socket->mate);
      const auto missing = std::ranges::find_if(needed, [&](uint32_t one) { return !ends_.contains(one); });
      if (missing == needed.end()) continue;
      return fail(Error::invalid("plan unix sockets",
                                 fmt::format("socket {}, which it is made with, is open in no task", *missing),
                                 fmt::format("files.img, file {}", end.description->id)));
    }
    return {};
  }

  // ---- sockets, names, connections

  void create() {
    for (const auto& [number, end] : ends_) {
      if (end.socket->is_listening) create_listener(end);
    }
    for (const auto& [number, end] : ends_) {
      if (end.socket->is_datagram())
        create_datagram(end);
      else if (!end.socket->is_listening)
        create_stream(end);
    }
    for (const auto& [number, end] : ends_) {
      for (const uint32_t number : end.socket->pending) {
        const auto& client = ends_.at(number);
        as(client.socket->owner, [&] { connect(client.fd, address_of(end)); });
      }
    }
  }

  // ---- what comes after the queues can be filled

  void complete(const plan::OpenNumbers& open) {
    open_ = &open;
    for (const auto& [number, end] : ends_) {
      if (!end.socket->is_datagram()) fill_stream(end);
    }
    for (const auto& [number, end] : ends_) {
      if (end.socket->is_datagram()) fill_and_connect(end);
    }
    for (const auto& [number, end] : ends_) {
      if (end.socket->outside) connect(end.fd, address(*end.socket->outside));
      lose_peer(end);
      if (end.keeps_file()) add(call(SYS_close, end.file()));
    }
    for (const auto& [number, end] : ends_) finish(end);
  }

 private:
  void add(plan::Call made) { calls_.push_back(std::move(made)); }
  void may_fail(plan::Call made) { add(expecting(std::move(made), Expectation::Kind::anything)); }

  void create_socket(int type, int fd) {
    add(call(SYS_socket, AF_UNIX, type, 0));
    add(call(plan::Call::move_fd, ResultOf{-1}, fd, 0));
  }
  /// Runs `make` with the ids that the kernel is to tell the other end (net/unix/af_unix.c, init_peercred). Files are
  /// reached as before. The change takes away the death signal, which is put back (kernel/cred.c, commit_creds).
  template <typename Make>
  void as(const std::optional<UnixSocket::Ids>& ids, Make make) {
    if (!ids) return make();
    const int first = static_cast<int>(calls_.size());
    const auto result = [&](int index) { return ResultOf{first + index - static_cast<int>(calls_.size())}; };
    const auto stay = ~0ull;
    add(call(SYS_geteuid));
    add(call(SYS_getegid));
    add(call(SYS_prctl, PR_GET_PDEATHSIG, plan::Out{4}));
    add(call(SYS_setresgid, stay, ids->gid, stay));
    add(call(SYS_setresuid, stay, ids->uid, stay));
    add(call(SYS_setfsuid, result(0)));
    make();
    add(call(SYS_setresuid, stay, result(0), stay));
    add(call(SYS_setresgid, stay, result(1), stay));
    add(call(SYS_prctl, PR_SET_PDEATHSIG, WordOf{first + 2 - static_cast<int>(calls_.size()), 0}));
  }

  /// Through numbers of our own: each end might have got the number that the other is to have. The second end has the
  /// higher number, which may be that of the first helper: it gives way first.
  void create_pair(const End& end, int other_fd) {
    int pair = 0;
    as(end.socket->peer_ids, [&] {
      pair = static_cast<int>(calls_.size());
      add(call(SYS_socketpair, AF_UNIX, end.socket->type, 0, plan::Out{8}));
    });
    const auto made = [&](uint32_t offset) { return WordOf{pair - static_cast<int>(calls_.size()), offset}; };
    add(call(plan::Call::move_fd, made(4), end.helper_file(), 0));
    add(call(plan::Call::move_fd, made(0), end.helper(), 0));
    add(call(plan::Call::move_fd, end.helper(), end.fd, 0));
    add(call(plan::Call::move_fd, end.helper_file(), other_fd, 0));
  }
  void connect(int fd, const Bytes& to) { add(call(SYS_connect, fd, plan::In{to}, to.size())); }

  /// How a socket of ours is reached that has a name.
  static Bytes address_of(const End& end) { return address_through(end.socket->name.text, end.file()); }
  static Bytes address_through(const std::string& name, int file) {
    return address(name.front() == 0 ? name : fmt::format("/proc/self/fd/{}", file));
  }

  /// Its file is opened under the number `file` (-1: it is not), and removed or put aside.
  void bind(const UnixName& name, bool stays, int fd, int file) {
    const Bytes own = address(name.text);
    if (!name.is_path()) return add(call(SYS_bind, fd, plan::In{own}, own.size()));
    if (name.is_relative()) add(call(SYS_chdir, plan::text(name.directory)));
    const auto path = plan::text(name.path());
    const auto put_aside = plan::text(name.path() + std::string(aside));
    const auto rename = [&](const plan::In& from, const plan::In& to) {
      add(expecting(call(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, no_replace), Expectation::Kind::success_or,
                    -ENOENT));
    };
    // Two restores that want one name would take each other's files for their own. A directory that cannot be read, or
    // locked, is left to chance.
    may_fail(call(plan::Call::hold_directory, plan::text(std::filesystem::path(name.path()).parent_path().string())));
    const int held = static_cast<int>(calls_.size()) - 1;
    // Whatever happens to the socket, the file that has the name comes back.
    rename(path, put_aside);
    may_fail(call(SYS_bind, fd, plan::In{own}, own.size()));
    may_fail(call(SYS_openat, AT_FDCWD, path, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0));
    const int opened = static_cast<int>(calls_.size()) - 1;
    const auto waiting = plan::text(name.file() + std::string(staged));
    // Whom the file is of can be asked of a socket that has lost it, too (SIOCUNIXFILE).
    if (!stays) {
      may_fail(call(SYS_fchownat, AT_FDCWD, path, name.uid, name.gid, AT_SYMLINK_NOFOLLOW));
      may_fail(call(SYS_fchmodat, AT_FDCWD, path, name.mode));
    }
    may_fail(stays ? call(SYS_renameat2, AT_FDCWD, path, AT_FDCWD, waiting, 0) : call(SYS_unlinkat, AT_FDCWD, path, 0));
    rename(put_aside, path);
    may_fail(call(SYS_close, ResultOf{held - static_cast<int>(calls_.size())}));
    // A socket that has no name by now has not been bound: one that has is refused another.
    const Bytes any = address(std::string("\0stasis", 7));
    add(expecting(call(SYS_bind, fd, plan::In{any}, any.size()), Expectation::Kind::exactly, -EINVAL));
    const ResultOf the_file{opened - static_cast<int>(calls_.size())};
    add(file >= 0 ? call(plan::Call::move_fd, the_file, file, O_CLOEXEC) : call(SYS_close, the_file));
    if (!stays) return;
    add(call(SYS_fchownat, AT_FDCWD, waiting, name.uid, name.gid, AT_SYMLINK_NOFOLLOW));
    add(call(SYS_fchmodat, AT_FDCWD, waiting, name.mode));
  }
  void bind(const End& end) {
    if (end.socket->name.text.empty() || end.socket->accepted) return;
    bind(end.socket->name, !end.socket->name.unlinked, end.fd, end.keeps_file() ? end.file() : -1);
  }
  /// A name for as long as somebody is told of it.
  void bind_passing(const std::string& name, int fd, int file) {
    UnixName passing;
    passing.text = name;
    for (const auto& [number, end] : ends_) {
      if (end.socket->name.text == name) passing.directory = end.socket->name.directory;
    }
    if (passing.is_relative() && passing.directory.empty()) passing.directory = directory_of_closed;
    bind(passing, false, fd, file);
  }

  void create_listener(const End& end) {
    create_socket(end.socket->type, end.fd);
    bind(end);
    as(end.socket->peer_ids, [&] { add(call(SYS_listen, end.fd, end.socket->backlog)); });
  }

  void create_stream(const End& end) {
    const auto& socket = *end.socket;
    if (socket.mate_gone()) return create_pair(end, end.gone_peer());
    if (socket.peer_gone) {
      const Side own{end.fd, &end}, gone{end.gone_peer(), nullptr};
      if (socket.accepted) return connect_through_listener(end, socket.name.text, gone, own);
      return connect_through_listener(end, socket.peer_name, own, gone);
    }
    const auto peer = ends_.find(socket.peer);
    if (peer == ends_.end() || peer->second.socket->is_listening) {
      create_socket(socket.type, end.fd);
      return bind(end);
    }
    const auto& other = peer->second;
    if (socket.mate != 0) {
      if (socket.number < socket.peer) create_pair(end, other.fd);
    } else if (socket.accepted) {
      connect_through_listener(end, socket.name.text, {other.fd, &other}, {end.fd, &end});
    }
  }

  /// One of a connection; without an End it is closed again.
  struct Side {
    int fd = -1;
    const End* end = nullptr;
    std::optional<UnixSocket::Ids> peer_ids() const { return end == nullptr ? std::nullopt : end->socket->peer_ids; }
  };

  /// A connection whose accepted end is called `name`. If nobody of ours listens there, somebody does for the moment.
  void connect_through_listener(const End& end, const std::string& name, Side client, Side server) {
    const auto found = std::ranges::find_if(ends_, [&](const auto& entry) {
      return entry.second.socket->is_listening && entry.second.socket->name.text == name;
    });
    const bool passing = found == ends_.end();
    const int listener = passing ? end.helper() : found->second.fd;
    if (passing) {
      create_socket(end.socket->type, listener);
      bind_passing(name, listener, end.helper_file());
      as(client.peer_ids(), [&] { add(call(SYS_listen, listener, 1)); });
    }
    create_socket(end.socket->type, client.fd);
    if (client.end != nullptr) bind(*client.end);
    const Bytes to = address_through(name, passing ? end.helper_file() : found->second.file());
    as(server.peer_ids(), [&] { connect(client.fd, to); });
    add(call(SYS_accept4, listener, 0, 0, 0));
    add(call(plan::Call::move_fd, ResultOf{-1}, server.fd, 0));
    if (!passing) return;
    add(call(SYS_close, listener));
    if (name.front() != 0) add(call(SYS_close, end.helper_file()));
  }

  void create_datagram(const End& end) {
    const auto& socket = *end.socket;
    if (socket.mate_gone()) {
      create_pair(end, end.gone_peer());
      if (!socket.peer_name.empty()) bind_passing(socket.peer_name, end.gone_peer(), -1);
    } else if (socket.mate != 0) {
      if (socket.number < socket.mate) {
        const auto& mate = ends_.at(socket.mate);
        create_pair(end, mate.fd);
        if (socket.peer != socket.mate) disconnect(end.fd, mate.fd);
        if (mate.socket->peer != socket.number) disconnect(mate.fd, end.fd);
        bind(end), bind(mate);
      }
      return;
    } else {
      create_socket(socket.type, end.fd);
    }
    bind(end);
  }

  /// One end of a pair has turned away. The other gets an error for it, which it has taken long since.
  void disconnect(int fd, int mate_fd) {
    sockaddr nobody{};
    nobody.sa_family = AF_UNSPEC;
    add(call(SYS_connect, fd, plan::struct_in(nobody), sizeof nobody));
    add(call(SYS_getsockopt, mate_fd, SOL_SOCKET, SO_ERROR, plan::Out{4}, plan::InOut{bytes_of(socklen_t{4})}));
  }

  // ---- queues

  /// The sender's buffer is what limits a queue.
  void make_room(int fd) {
    if (!roomy_.insert(fd).second) return;
    add(set_option(fd, SO_SNDBUF, plenty));
    may_fail(set_option(fd, SO_SNDBUFFORCE, plenty));
  }

  void send(int fd, const Bytes& to, const UnixMessage& message) {
    make_room(fd);
    const auto length = static_cast<int64_t>(message.content.size());
    add(expecting(call(SYS_sendmsg, fd, packed(to, message), MSG_DONTWAIT | MSG_NOSIGNAL), Expectation::Kind::exactly,
                  length));
  }

  /// struct msghdr with all that it points to.
  plan::In packed(const Bytes& to, const UnixMessage& message) const {
    struct {
      msghdr head{};
      iovec vector{};
    } fixed;
    const Bytes control = ancillary(message);
    fixed.vector.iov_len = message.content.size();
    fixed.head.msg_iovlen = 1;
    fixed.head.msg_namelen = static_cast<socklen_t>(to.size()), fixed.head.msg_controllen = control.size();
    plan::In in{bytes_of(fixed)};
    const auto append = [&](size_t pointer, const Bytes& bytes) {
      if (bytes.empty()) return;
      in.bytes.resize((in.bytes.size() + 7) / 8 * 8);
      in.pointers.emplace_back(pointer, in.bytes.size());
      in.bytes.insert(in.bytes.end(), bytes.begin(), bytes.end());
    };
    in.pointers.emplace_back(offsetof(msghdr, msg_iov), sizeof(msghdr));
    append(offsetof(msghdr, msg_name), to);
    append(offsetof(msghdr, msg_control), control);
    append(sizeof(msghdr) + offsetof(iovec, iov_base), message.content);
    return in;
  }

  Bytes ancillary(const UnixMessage& message) const {
    Bytes control;
    const auto append = [&](int type, const Bytes& data) {
      cmsghdr head{};
      head.cmsg_len = CMSG_LEN(data.size()), head.cmsg_level = SOL_SOCKET, head.cmsg_type = type;
      const Bytes begin = bytes_of(head);
      control.insert(control.end(), begin.begin(), begin.end());
      control.insert(control.end(), data.begin(), data.end());
      control.resize((control.size() + 7) / 8 * 8);
    };
    Bytes numbers;
    for (const ObjectId carried : message.descriptors) {
      const Bytes number = bytes_of((*open_)(carried).value());
      numbers.insert(numbers.end(), number.begin(), number.end());
    }
    if (!numbers.empty()) append(SCM_RIGHTS, numbers);
    if (message.credentials) {
      const auto& [pid, uid, gid] = *message.credentials;
      append(SCM_CREDENTIALS, bytes_of(ucred{pid > 0 ? pid : maker_.value, uid, gid}));
    }
    return control;
  }

  void fill_stream(const End& end) {
    const auto peer = ends_.find(end.socket->peer);
    const int sender = peer == ends_.end() ? end.gone_peer() : peer->second.fd;
    for (const auto& message : end.socket->queue) send(sender, {}, message);
  }

  /// Who has a peer receives from that one alone: what others have sent comes before. And nobody can connect to one
  /// that has another peer: those who are connected to it come first.
  void fill_and_connect(const End& end) {
    if (!filled_.insert(end.socket->number).second) return;
    const auto& socket = *end.socket;
    for (const auto& [number, other] : ends_) {
      if (other.socket->peer == socket.number && other.socket->mate != socket.number) fill_and_connect(other);
    }
    const auto peer = ends_.find(socket.peer);
    const bool connects = peer != ends_.end() && socket.mate != socket.peer;
    const int peer_fd = connects ? peer->second.fd : -1;
    auto before_connection = socket.queue.size();
    while (connects && before_connection > 0 && sender_of(end, socket.queue[before_connection - 1]) == peer_fd)
      --before_connection;
    for (size_t i = 0; i < before_connection; ++i) send_datagram(end, socket.queue[i]);
    if (connects) connect(end.fd, address_of(peer->second));
    for (size_t i = before_connection; i < socket.queue.size(); ++i) send_datagram(end, socket.queue[i]);
    if (socket.peer_gone && !socket.mate_gone()) {
      create_socket(socket.type, end.gone_peer());
      bind_passing(socket.peer_name, end.gone_peer(), end.helper_file());
      connect(end.fd, address_through(socket.peer_name, end.helper_file()));
      if (socket.peer_name.front() != 0) add(call(SYS_close, end.helper_file()));
    }
  }

  /// The socket of ours that has sent it; -1: it is closed.
  int sender_of(const End& end, const UnixMessage& message) const {
    const auto& socket = *end.socket;
    const auto mate = ends_.find(socket.mate);
    if (mate != ends_.end() && mate->second.socket->name.text == message.sender_name) return mate->second.fd;
    if (socket.mate_gone() && socket.peer_name == message.sender_name) return end.gone_peer();
    const auto found = std::ranges::find_if(ends_, [&](const auto& entry) {
      const auto& other = *entry.second.socket;
      return other.is_datagram() && other.name.text == message.sender_name &&
             (!other.name.text.empty() || (other.peer == socket.number && other.mate != socket.number));
    });
    return found == ends_.end() ? -1 : found->second.fd;
  }

  void send_datagram(const End& end, const UnixMessage& message) {
    const auto& socket = *end.socket;
    const bool has_mate = socket.mate != 0 || socket.mate_gone();
    int sender = sender_of(end, message);
    // Without a name it can be reached by its mate only.
    if (socket.name.text.empty() && has_mate)
      return send(socket.mate_gone() ? end.gone_peer() : ends_.at(socket.mate).fd, {}, message);
    const bool passing = sender < 0;
    if (passing) {
      sender = end.helper();
      create_socket(socket.type, sender);
      roomy_.erase(sender);
      if (!message.sender_name.empty()) bind_passing(message.sender_name, sender, -1);
    }
    send(sender, address_of(end), message);
    if (passing) add(call(SYS_close, sender));
  }

  // ---- the end

  void lose_peer(const End& end) {
    if (!end.socket->peer_gone) return;
    // Something that the peer has not received makes its end a reset (net/unix/af_unix.c, unix_release_sock).
    if (end.socket->reset) add(call(SYS_sendto, end.fd, plan::In{Bytes{0}}, 1, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0));
    add(call(SYS_close, end.gone_peer()));
  }

  void finish(const End& end) {
    if (const auto& owner = end.socket->owner) add(call(SYS_fchown, end.fd, owner->uid, owner->gid));
    const uint32_t shutdown = end.socket->shutdown;
    if (shutdown != 0) add(call(SYS_shutdown, end.fd, shutdown - 1));  // SHUT_RD, SHUT_WR, SHUT_RDWR
    add_socket_options(end.socket->options, end.fd, calls_);
    const uint32_t flags = end.description->flags & settable;
    if (flags != 0) add(call(SYS_fcntl, end.fd, F_SETFL, flags));
  }

  Pid maker_;
  std::map<uint32_t, End> ends_;
  plan::Calls calls_;
  const plan::OpenNumbers* open_ = nullptr;
  std::set<int> roomy_;
  std::set<uint32_t> filled_;
};

bool carries_something(std::span<const plan::Placement> placements) {
  return std::ranges::any_of(placements, [](const auto& placement) { return !placement.description->carries.empty(); });
}

}  // namespace

Status make_unix_sockets(std::span<const plan::Placement> placements, plan::Sink& sink) {
  Builder builder(placements, sink.pid());
  TRY(builder.check());
  builder.create();
  if (!carries_something(placements)) builder.complete(plan::nothing_is_open);
  plan::Perform perform{builder.purpose(), "", {}, {}, builder.take()};
  for (const auto& placement : placements) perform.creates.push_back({placement.fd, placement.description->id});
  sink.add(std::move(perform));
  return {};
}

Status complete_unix_sockets(std::span<const plan::Placement> placements, const plan::OpenNumbers& open,
                             plan::Sink& sink) {
  Builder builder(placements, sink.pid());
  builder.complete(open);
  plan::Perform perform{"queues of " + builder.purpose(), "", {}, {}, builder.take()};
  for (const auto& placement : placements) {
    if (!placement.description->carries.empty()) perform.completes.push_back({placement.fd, placement.description->id});
  }
  sink.add(std::move(perform));
  return {};
}

void settle_unix_sockets(const model::Application& application, plan::Sink& sink) {
  for (const auto& [id, description] : application.descriptions) {
    const auto* socket = description.state.as<UnixSocket>();
    if (socket == nullptr || description.given >= 0 || !socket->is_staged()) continue;
    const std::string path = socket->name.file(), bound = socket->name.path();
    const auto final = plan::text(path), made = plan::text(path + std::string(staged));
    sink.perform("file of a socket: " + path, std::string(plan::only_on_success),
                 {call(SYS_renameat2, AT_FDCWD, made, AT_FDCWD, final, 0)});
    const auto if_there = [](plan::Call made_call) {
      return expecting(std::move(made_call), Expectation::Kind::success_or, -ENOENT);
    };
    sink.perform("leave nothing beside " + path, "",
                 {if_there(call(SYS_unlinkat, AT_FDCWD, made, 0)),
                  if_there(call(SYS_renameat2, AT_FDCWD, plan::text(bound + std::string(aside)), AT_FDCWD,
                                plan::text(bound), 0))});
  }
}

}  // namespace stasis::resource
