// Unix sockets: capture and images.
//
// The kernel lists them with their names, peers and pending connections (kernel/sock_diag.h); the rest is asked through
// duplicates of their descriptors. In images and in the model they refer to each other by numbers: CRIU's are inodes,
// ours the ids of the descriptions.
#include "resource/unix_socket.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "kernel/sock_diag.h"
#include "resource/descriptors.h"
#include "resource/file_identity.h"
#include "resource/ghost_file.h"
#include "resource/regular_file.h"
#include "resource/socket_probe.h"

namespace stasis::resource {
namespace {

constexpr unsigned long open_file_of_socket = 0x89e0;  ///< SIOCUNIXFILE (linux/un.h)
constexpr uint32_t is_external = 1;                    ///< CRIU's USK_EXTERN, in uflags
constexpr size_t longest_name = sizeof(sockaddr_un{}.sun_path);

/// What the kernel lists, read once for a capture.
struct Listing {
  bool read = false;
  std::map<uint32_t, kernel::UnixSocketInfo> by_inode;
  std::map<uint32_t, uint32_t> waits_for;  ///< the listening socket of one that is not accepted yet

  Status fill() {
    if (std::exchange(read, true)) return {};
    for (auto& info : TRY(kernel::list_unix_sockets())) {
      for (const uint32_t client : info.pending) {
        if (client != 0) waits_for[client] = info.inode;
      }
      if (info.inode != 0) by_inode[info.inode] = std::move(info);
    }
    return {};
  }
};

std::string text_of(const Bytes& name) {
  std::string text(name.begin(), name.end());
  if (!text.empty() && text.front() != 0) text.resize(strnlen(text.data(), text.size()));
  return text;
}

/// CRIU writes paths with their NUL.
std::string name_record(const std::string& text) {
  return text.empty() || text.front() == 0 ? text : text + std::string(1, '\0');
}

std::string peer_name(int fd) {
  sockaddr_un name{};
  socklen_t size = sizeof name;
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&name), &size) != 0 || size <= sizeof name.sun_family) return {};
  const auto* first = reinterpret_cast<const uint8_t*>(name.sun_path);
  return text_of(Bytes(first, first + std::min<size_t>(size - sizeof name.sun_family, longest_name)));
}

/// The directory that a relative name was given in, if its file's path tells.
std::optional<std::string> directory_of(const std::string& path, std::string text) {
  while (text.starts_with("./")) text.erase(0, 2);
  if (!path.ends_with("/" + text)) return std::nullopt;
  const auto directory = path.substr(0, path.size() - text.size() - 1);
  return directory.empty() ? "/" : directory;
}

class UnixSocketRoom final : public FileRoom {
 public:
  std::string_view kind() const override { return "unix socket"; }
  ObjectId made_together(const model::OpenDescription& description) const override {
    return description.state.as<UnixSocket>()->together;
  }

  // ---- capture

  bool recognises(const DescriptorProbe& probe) const override {
    return probe.link.starts_with("socket:[") && socket_family(probe) == AF_UNIX;
  }

  Result<model::KindState> capture(CaptureContext& context, const DescriptorProbe& probe) const override {
    auto& listing = context.kept<Listing>();
    TRY(listing.fill());
    auto socket = std::make_shared<UnixSocket>();
    const auto found = listing.by_inode.find(static_cast<uint32_t>(probe.stat.st_ino));
    if (found == listing.by_inode.end()) {
      refuse_other_network(context, probe);
      return model::KindState{std::move(socket)};
    }
    const auto& info = found->second;
    const int fd = TRY(probe.duplicate());
    socket->number = socket->inode = info.inode, socket->type = info.type, socket->shutdown = info.shutdown;
    socket->is_listening = info.state == TCP_LISTEN, socket->backlog = info.backlog, socket->pending = info.pending;
    socket->peer = info.peer.value_or(0);
    if (info.peer && *info.peer == 0) {
      const auto listener = listing.waits_for.find(info.inode);
      socket->peer_gone = listener == listing.waits_for.end();
      if (socket->peer_gone)
        socket->peer_name = peer_name(fd);
      else
        TRY(wait_for(context, probe, fd, listener->second, *socket));
    }
    if (!info.name.empty()) TRY(capture_name(context, probe, fd, text_of(info.name), socket->name));
    socket->owner = {probe.stat.st_uid, probe.stat.st_gid};
    ucred peer{};
    socklen_t size = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid != ~0u)
      socket->peer_ids = {peer.uid, peer.gid};
    socket->options = TRY(capture_socket_options(fd, probe.subject));
    TRY(capture_queue(context, probe, fd, *socket));
    return model::KindState{std::move(socket)};
  }

  Status finish_capture(CaptureContext& context) const override {
    auto& application = context.application;
    std::map<uint32_t, ObjectId> id_of;  // inode → description
    for (const auto& [id, description] : application.descriptions) {
      if (const auto* socket = description.state.as<UnixSocket>()) id_of[socket->number] = id;
    }
    if (id_of.empty()) return {};
    for (auto& [id, description] : application.descriptions) {
      const auto* captured = description.state.as<UnixSocket>();
      if (captured == nullptr || captured->number == 0) continue;
      auto socket = std::make_shared<UnixSocket>(*captured);
      find_peer(context, id, id_of, *socket);
      find_pending(context, id, id_of, *socket);
      socket->number = id.value;
      description.state = {std::move(socket)};
    }
    if (context.diagnostics.refused()) return {};
    return link_unix_sockets(application);
  }

  // ---- images

  Status encode(const model::Application&, const model::OpenDescription& description,
                image::FileRecords& records) const override {
    const auto& socket = *description.state.as<UnixSocket>();
    image::FileRecord record;
    record.set_type(UNIXSK), record.set_id(description.id.value);
    auto& entry = *record.mutable_usk();
    const bool is_connected = socket.peer != 0 || socket.peer_gone || socket.outside;
    entry.set_id(description.id.value), entry.set_ino(socket.number), entry.set_inode(socket.inode);
    entry.set_type(static_cast<uint32_t>(socket.type));
    entry.set_state(socket.is_listening ? TCP_LISTEN : is_connected ? TCP_ESTABLISHED : TCP_CLOSE);
    entry.set_flags(description.flags), entry.set_uflags(0);
    entry.set_backlog(socket.backlog), entry.set_peer(socket.peer);
    encode_owner(description.owner, *entry.mutable_fown());
    encode_socket_options(socket.options, *entry.mutable_opts());
    encode_name(socket.name, entry);
    if (socket.shutdown != 0) entry.set_shutdown(static_cast<sk_shutdown>(socket.shutdown));
    for (const uint32_t client : socket.pending) entry.add_pending(client);
    if (socket.peer_gone) entry.set_peer_gone(true);
    if (!socket.peer_name.empty()) entry.set_peer_name(name_record(socket.peer_name));
    if (socket.reset) entry.set_reset(true);
    const auto encode_ids = [](const UnixSocket::Ids& ids, sk_credentials_entry& into) {
      into.set_uid(ids.uid), into.set_gid(ids.gid);
    };
    if (socket.peer_ids) encode_ids(*socket.peer_ids, *entry.mutable_peer_credentials());
    if (socket.owner) encode_ids(*socket.owner, *entry.mutable_owner());
    if (socket.outside) {
      entry.set_peer(outside_record_id(description.id));
      records.files.push_back(outside_record(description.id, socket));
    }
    records.files.push_back(std::move(record));
    return encode_queue(description.id, socket, records);
  }

  /// Of one that others in the tree are connected to, none can take the place.
  std::vector<std::string> names(const model::Application& application,
                                 const model::OpenDescription& description) const override {
    const auto& socket = *description.state.as<UnixSocket>();
    const auto is_peer = [&](const auto& entry) {
      const auto* other = entry.second.state.template as<UnixSocket>();
      return other != nullptr && other->peer == socket.number;
    };
    if (socket.peer != 0 || std::ranges::any_of(application.descriptions, is_peer)) return {};
    return {fmt::format("socket:[{}]", socket.inode), fmt::format("socket[{}]", socket.inode)};
  }

  bool decodes(const image::FileRecords&, const image::FileRecord& record) const override {
    return record.type() == UNIXSK;
  }

  std::vector<uint32_t> parts(const image::FileRecords& records, const image::FileRecord& record) const override {
    const auto outside = outside_of(records, record.usk().peer());
    return outside && *outside != nullptr ? std::vector<uint32_t>{(*outside)->id()} : std::vector<uint32_t>{};
  }

  Result<model::OpenDescription> decode(const image::FileRecords& records, const image::FileRecord& record,
                                        model::Application&) const override {
    const std::string where = fmt::format("files.img, file {}", record.id());
    if (!record.has_usk())
      return fail(Error::invalid("decode unix socket", "the entry of type UNIXSK has no usk field", where));
    const auto& entry = record.usk();
    const auto reject = [&](std::string_view field, std::string cause) {
      return fail(
          Error::invalid("decode unix socket", std::move(cause), fmt::format("{}, field usk.{}", where, field)));
    };
    auto socket = std::make_shared<UnixSocket>();
    if (entry.ino() == 0) return reject("ino", "0 is no inode");
    socket->number = entry.ino(), socket->inode = entry.has_inode() ? entry.inode() : entry.ino();
    socket->type = static_cast<int>(entry.type());
    if (socket->type != SOCK_STREAM && socket->type != SOCK_DGRAM && socket->type != SOCK_SEQPACKET)
      return reject("type", fmt::format("{} is no type of unix sockets", entry.type()));
    socket->is_listening = entry.state() == TCP_LISTEN, socket->backlog = entry.backlog();
    if (socket->is_listening && (socket->is_datagram() || entry.name().empty()))
      return reject("state", "such a socket does not listen");
    if (!socket->is_listening) socket->backlog = 0;
    socket->pending.assign(entry.pending().begin(), entry.pending().end());
    if (!socket->pending.empty() && !socket->is_listening) return reject("pending", "the socket does not listen");
    socket->peer = entry.peer();
    if (const auto* outside = TRY(outside_of(records, entry.peer()))) {
      socket->peer = 0;
      socket->outside = text_of(Bytes(outside->usk().name().begin(), outside->usk().name().end()));
      if (socket->outside->empty() || socket->outside->size() > longest_name || socket->is_listening)
        return reject("peer", "nothing leads to its peer outside of the tree");
    }
    // CRIU knows only those of connections: they are connected to nobody.
    const bool half = entry.state() == TCP_ESTABLISHED && entry.peer() == 0 && !socket->is_datagram();
    socket->peer_gone = entry.peer_gone() || half;
    socket->peer_name = text_of(Bytes(entry.peer_name().begin(), entry.peer_name().end()));
    if (socket->peer_gone && (socket->peer != 0 || socket->is_listening)) return reject("peer_gone", "it has a peer");
    const auto ids = [](const sk_credentials_entry& from) { return UnixSocket::Ids{from.uid(), from.gid()}; };
    if (entry.has_peer_credentials()) socket->peer_ids = ids(entry.peer_credentials());
    if (entry.has_owner()) socket->owner = ids(entry.owner());
    socket->reset = entry.reset();
    if (socket->reset && (!socket->peer_gone || socket->is_datagram()))
      return reject("reset", "there is no connection that could have been reset");
    socket->shutdown = entry.shutdown();
    TRY(decode_name(entry, where, socket->name));
    if (socket->peer_name.size() > longest_name) return reject("peer_name", "no name is so long");
    socket->options = TRY(decode_socket_options(entry.opts(), where + ", field usk.opts"));
    socket->queue = TRY(decode_queue(records, record.id()));
    if (socket->is_listening && !socket->queue.empty()) return reject("state", "a listening socket has no queue");
    model::OpenDescription description;
    description.id = ObjectId{record.id()}, description.flags = entry.flags();
    description.owner = decode_owner(entry.fown());
    description.state = {std::move(socket)};
    return description;
  }

  Status finish_decode(model::Application& application) const override {
    TRY(link_unix_sockets(application));
    for (const auto& [id, description] : application.descriptions) {
      const auto* socket = description.state.as<UnixSocket>();
      if (socket != nullptr) make_directories(*socket, application);
    }
    return {};
  }

  // ---- restore

  void validate_all(const model::Application& application, Diagnostics& diagnostics) const override;
  void leftovers(const model::Application& application, std::vector<Leftover>& found) const override;

  void contribute(plan::Stage stage, const model::Application& application, plan::Sink& sink) const override {
    if (stage == plan::Stage::settle) settle_unix_sockets(application, sink);
  }
  Status make(const model::Application&, std::span<const plan::Placement> placements, plan::Sink& sink) const override {
    return make_unix_sockets(placements, sink);
  }
  Status complete(const model::Application&, std::span<const plan::Placement> placements, const plan::OpenNumbers& open,
                  plan::Sink& sink) const override {
    return complete_unix_sockets(placements, open, sink);
  }

 private:
  /// Nobody has a descriptor of the other end yet, through which to look at what has been sent.
  static Status wait_for(CaptureContext& context, const DescriptorProbe& probe, int fd, uint32_t listener,
                         UnixSocket& socket) {
    socket.peer = listener;
    int sent = 0;
    if (ioctl(fd, TIOCOUTQ, &sent) != 0) return fail_errno("SIOCOUTQ", probe.subject);
    if (sent == 0) return {};
    context.diagnostics.refuse_for_now(probe.subject, "it has sent something on a connection that is not accepted yet",
                                       "what that was cannot be seen: let the program at the other end accept it");
    return {};
  }

  static Status capture_name(CaptureContext& context, const DescriptorProbe& probe, int fd, std::string text,
                             UnixName& name) {
    name.text = std::move(text);
    if (!name.is_path()) return {};
    const UniqueFd file(ioctl(fd, open_file_of_socket));
    if (!file.valid()) {
      return fail(Error::system("find the file of a socket", errno, probe.subject)
                      .advise("stasis needs CAP_NET_ADMIN to save sockets that are bound to a path"));
    }
    const auto link = TRY(read_file_link(fmt::format("/proc/self/fd/{}", file.get())));
    const auto& about = link.stat;
    name.mode = about.st_mode & 07777, name.uid = about.st_uid, name.gid = about.st_gid;
    name.unlinked = about.st_nlink == 0;
    const bool is_deleted = link.target.ends_with(deleted_mark);
    std::string path = is_deleted ? original_path(link.target) : link.target;
    if (is_deleted && !name.unlinked) {
      const auto other = name_beside(path, about);
      if (!other) {
        context.diagnostics.refuse(probe.subject,
                                   fmt::format("its file {} lives on under a name that nothing tells", path),
                                   "link it under its own name again");
        return {};
      }
      path = *other;
    }
    if (name.is_relative()) find_directory(context, probe, about, path, name);
    if (!name.unlinked && !leads_to(name.path(), about)) name.moved_to = path;
    return {};
  }

  static bool leads_to(const std::string& path, const struct stat& file) {
    struct stat there{};
    return stat(path.c_str(), &there) == 0 && there.st_dev == file.st_dev && there.st_ino == file.st_ino;
  }

  static void find_directory(CaptureContext& context, const DescriptorProbe& probe, const struct stat& file,
                             const std::string& path, UnixName& name) {
    const auto working = kernel::read_link(fmt::format("/proc/{}/cwd", probe.witness));
    if (const auto told = directory_of(path, name.text))
      name.directory = *told;
    else if (working && leads_to(*working + "/" + name.text, file))
      name.directory = *working;
    else if (!name.unlinked && name.text.find('/') == std::string::npos)
      name.directory = std::filesystem::path(path).parent_path();  // renamed there, or from anywhere: nobody can tell
    else
      context.diagnostics.refuse(probe.subject,
                                 fmt::format("it is bound to the relative path {}, and nothing tells where that leads "
                                             "from ({} is its file)",
                                             name.text, path),
                                 "bind it by its absolute path");
  }

  static Status capture_queue(CaptureContext& context, const DescriptorProbe& probe, int fd, UnixSocket& socket) {
    if (socket.is_listening) return {};
    const short events = poll_events(fd, POLLPRI);
    if ((events & POLLPRI) != 0) {
      context.diagnostics.refuse_for_now(probe.subject, "urgent data (MSG_OOB) waits in it",
                                         "let the program receive it");
      return {};
    }
    socket.reset = (events & POLLERR) != 0;
    int waiting = 0;
    if (socket.type == SOCK_SEQPACKET && ioctl(fd, FIONREAD, &waiting) != 0)
      return fail_errno("FIONREAD", probe.subject);
    // Looking at messages would take the error away (net/core/datagram.c, __skb_try_recv_datagram).
    const bool unreadable = socket.reset && (socket.is_datagram() || waiting != 0);
    if (unreadable || (socket.reset && !socket.peer_gone)) {
      context.diagnostics.refuse_for_now(probe.subject, "an error waits to be reported (SO_ERROR)",
                                         "let the program take it, with what it has received");
      return {};
    }
    // Packets come by connections, and the kernel does not even look for some otherwise (net/unix/af_unix.c,
    // unix_seqpacket_recvmsg: ENOTCONN).
    const bool is_connected = socket.peer != 0 || socket.peer_gone;
    if (socket.type == SOCK_SEQPACKET && (socket.reset || !is_connected)) return {};
    socket.queue = TRY(read_unix_queue(context, fd, socket.type, probe.subject));
    if (socket.is_datagram() && socket.queue.empty() && (events & POLLIN) != 0) {
      context.diagnostics.refuse_for_now(probe.subject,
                                         "empty datagrams wait in it which an earlier dump has looked at",
                                         "let the program receive them");
    }
    return {};
  }

  /// For diagnostics: one of the descriptors of the socket.
  static std::string subject_of(const model::Application& application, ObjectId id) {
    for (const auto& task : application.tasks) {
      const auto table = application.descriptor_tables.find(task.descriptors);
      if (table == application.descriptor_tables.end()) continue;
      for (const auto& [fd, slot] : table->second.slots) {
        if (slot.description == id)
          return fmt::format("task {} '{}', descriptor {} → unix socket", task.pid, task.name, fd);
      }
    }
    return "unix socket in flight";
  }

  /// Inodes become numbers. A peer that nobody in the tree has is outside.
  static void find_peer(CaptureContext& context, ObjectId id, const std::map<uint32_t, ObjectId>& id_of,
                        UnixSocket& socket) {
    if (socket.peer == 0) return;
    const uint32_t inode = socket.peer;
    if (const auto peer = id_of.find(inode); peer != id_of.end()) {
      socket.peer = peer->second.value;
      return;
    }
    socket.peer = 0;
    const auto& listing = context.kept<Listing>();
    const auto known = listing.by_inode.find(inode);
    const std::string name = known == listing.by_inode.end() ? "" : text_of(known->second.name);
    const bool by_name = context.policy.external_unix && socket.is_datagram() && !name.empty();
    const auto& external = context.policy.external;
    if (by_name || std::ranges::find(external, fmt::format("unix[{}]", socket.number)) != external.end()) {
      if (name.empty())
        socket.peer_gone = true;  // nothing leads back to it
      else
        socket.outside = name;
      if (!socket.is_datagram() && socket.outside && !socket.queue.empty()) {
        context.diagnostics.warn(subject_of(context.application, id), "what waits in it is lost",
                                 "its connection is made anew");
        socket.queue.clear();
      }
      return;
    }
    const std::string shown = name.empty() ? "without a name" : "'" + shown_name(name) + "'";
    const std::string advice =
        socket.is_datagram() && !name.empty()
            ? "pass --ext-unix-sk, and it is connected to that name again; or dump that process as well"
            : fmt::format("dump that process as well, or pass --external 'unix[{}]', and the connection is {}",
                          socket.number, name.empty() ? "closed by its peer after the restore" : "made anew");
    context.diagnostics.refuse(
        subject_of(context.application, id),
        fmt::format("its peer, socket {} {}, is held by a process outside of the tree", inode, shown), advice);
  }

  static void find_pending(CaptureContext& context, ObjectId id, const std::map<uint32_t, ObjectId>& id_of,
                           UnixSocket& socket) {
    for (uint32_t& client : socket.pending) {
      const auto known = id_of.find(client);
      if (known != id_of.end()) {
        client = known->second.value;
      } else if (client == 0) {
        context.diagnostics.refuse_for_now(subject_of(context.application, id),
                                           "a client has closed its connection before it was accepted",
                                           "what it may have sent cannot be seen: let the program accept it");
      } else {
        context.diagnostics.refuse_for_now(
            subject_of(context.application, id),
            fmt::format("a process outside of the tree waits to be accepted, with its socket {}", client),
            "let the program accept it, or dump that process as well");
      }
    }
  }

  static uint32_t outside_record_id(ObjectId id) { return path_record_id(id); }

  static image::FileRecord outside_record(ObjectId id, const UnixSocket& socket) {
    image::FileRecord record;
    record.set_type(UNIXSK), record.set_id(outside_record_id(id));
    auto& entry = *record.mutable_usk();
    entry.set_id(record.id()), entry.set_ino(record.id()), entry.set_type(static_cast<uint32_t>(socket.type));
    entry.set_state(TCP_LISTEN), entry.set_flags(0), entry.set_uflags(is_external), entry.set_backlog(0);
    entry.set_peer(0), entry.set_name(name_record(*socket.outside));
    encode_owner({}, *entry.mutable_fown());
    encode_socket_options({}, *entry.mutable_opts());
    return record;
  }

  /// Records that say where to find peers outside of the tree, by their inodes.
  static Result<const image::FileRecord*> outside_of(const image::FileRecords& records, uint32_t peer) {
    using Index = std::map<uint32_t, const image::FileRecord*>;
    const auto* outside = TRY(records.made_once<Index>("unix sockets outside", [&]() -> Result<Index> {
      Index index;
      for (const auto* record : records.loaded()) {
        if (record->type() == UNIXSK && record->has_usk() && (record->usk().uflags() & is_external) != 0)
          index.emplace(record->usk().ino(), record);
      }
      return index;
    }));
    const auto found = outside->find(peer);
    return found == outside->end() ? nullptr : found->second;
  }

  static void encode_name(const UnixName& name, unix_sk_entry& entry) {
    entry.set_name(name_record(name.text));
    if (!name.is_path()) return;
    auto& file = *entry.mutable_file_perms();
    file.set_mode(name.mode | S_IFSOCK), file.set_uid(name.uid), file.set_gid(name.gid);
    if (name.is_relative()) entry.set_name_dir(name.directory);
    if (name.unlinked) entry.set_deleted(true);
    if (!name.moved_to.empty()) entry.set_moved_to(name.moved_to);
  }

  static Status decode_name(const unix_sk_entry& entry, const std::string& where, UnixName& name) {
    const auto reject = [&](std::string_view field, std::string cause) {
      return fail(
          Error::invalid("decode unix socket", std::move(cause), fmt::format("{}, field usk.{}", where, field)));
    };
    name.text = text_of(Bytes(entry.name().begin(), entry.name().end()));
    if (name.text.size() > longest_name) return reject("name", "no name is so long");
    if (!name.is_path()) return {};
    name.mode = entry.file_perms().mode() & 07777;
    name.uid = entry.file_perms().uid(), name.gid = entry.file_perms().gid();
    name.unlinked = entry.deleted();
    name.moved_to = entry.moved_to();
    const auto is_absolute = [](const std::string& path) {
      return path.starts_with('/') && path.find('\0') == std::string::npos;
    };
    if (!name.moved_to.empty() && (name.unlinked || !is_absolute(name.moved_to)))
      return reject("moved_to", "it is no absolute path of a file that exists");
    if (!name.is_relative()) return {};
    name.directory = entry.name_dir();
    if (!is_absolute(name.directory)) return reject("name_dir", "a relative name needs an absolute directory");
    return {};
  }

  static Status encode_queue(ObjectId id, const UnixSocket& socket, image::FileRecords& records) {
    for (const auto& message : socket.queue) {
      sk_packet_entry entry;
      entry.set_id_for(id.value), entry.set_length(static_cast<uint32_t>(message.content.size()));
      if (!message.descriptors.empty()) {
        auto& rights = *entry.add_scm();
        rights.set_type(SCM_RIGHTS);
        for (const ObjectId carried : message.descriptors) rights.add_rights(carried.value);
      }
      if (!message.sender_name.empty()) entry.set_sender(name_record(message.sender_name));
      if (message.credentials) {
        auto& sender = *entry.mutable_credentials();
        if (message.credentials->pid > 0) sender.set_pid(static_cast<uint32_t>(message.credentials->pid));
        sender.set_uid(message.credentials->uid), sender.set_gid(message.credentials->gid);
      }
      auto* writer = TRY(records.side("sk-queues"));
      TRY(writer->append(entry));
      TRY(writer->append_raw(message.content));
    }
    return {};
  }

  struct StoredMessage {
    uint32_t owner = 0;
    UnixMessage message;
  };

  using Queues = std::map<uint32_t, std::vector<UnixMessage>>;  // by description

  /// The image is read once for all sockets.
  static Result<std::vector<UnixMessage>> decode_queue(const image::FileRecords& records, uint32_t id) {
    const auto* queues = TRY(records.made_once<Queues>("unix socket queues", [&] { return read_queues(records); }));
    const auto own = queues->find(id);
    return own == queues->end() ? std::vector<UnixMessage>{} : own->second;
  }

  static Result<Queues> read_queues(const image::FileRecords& records) {
    Queues queues;
    auto reader = TRY(records.directory().find(image::file_name("sk-queues")));
    for (sk_packet_entry entry; reader && TRY(reader->next(entry));) {
      auto message = TRY(decode_message(entry, reader->where()));
      message.content = TRY(reader->raw(entry.length()));
      queues[entry.id_for()].push_back(std::move(message));
    }
    return queues;
  }

  static Result<UnixMessage> decode_message(const sk_packet_entry& entry, const std::string& where) {
    const auto reject = [&](std::string_view field, std::string cause) {
      return fail(Error::invalid("decode socket queue", std::move(cause), fmt::format("{}, field {}", where, field)));
    };
    UnixMessage message;
    for (const auto& control : entry.scm()) {
      if (control.type() != SCM_RIGHTS) return reject("scm.type", fmt::format("{} is unknown", control.type()));
      for (const uint32_t right : control.rights()) message.descriptors.push_back(ObjectId{right});
    }
    constexpr size_t most_descriptors = 253;  // SCM_MAX_FD
    if (message.descriptors.size() > most_descriptors) return reject("scm.rights", "no message carries so many");
    message.sender_name = text_of(Bytes(entry.sender().begin(), entry.sender().end()));
    if (message.sender_name.size() > longest_name) return reject("sender", "no name is so long");
    if (!entry.has_credentials()) return message;
    const auto& sender = entry.credentials();
    if (sender.has_pid() && (sender.pid() == 0 || sender.pid() > INT32_MAX))
      return reject("credentials.pid", fmt::format("{} is no pid", sender.pid()));
    message.credentials = {sender.has_pid() ? static_cast<pid_t>(sender.pid()) : -1, sender.uid(), sender.gid()};
    return message;
  }

  // ---- before a restore

  /// Those of names that lead to no file in the end, but are bound at the restore.
  static void make_directories(const UnixSocket& socket, model::Application& application) {
    const auto make = [&](const std::string& text) {
      const UnixName closed{.text = text, .directory = directory_of_closed};
      if (closed.is_path()) make_missing_directories(application, closed.path());
    };
    const auto& name = socket.name;
    if (name.is_path() && (!socket.is_staged() || !name.moved_to.empty()))
      make_missing_directories(application, name.path());
    make(socket.peer_name);
    for (const auto& message : socket.queue) make(message.sender_name);
  }

  /// Whether a file or an abstract name is in the way.
  static void validate_name(const UnixSocket& socket, const std::set<std::string>& taken, Diagnostics& diagnostics) {
    const auto& name = socket.name;
    const std::string subject = socket.describe();
    if (name.text.empty()) return;
    if (!name.is_path()) {
      if (taken.contains(name.text))
        diagnostics.refuse(subject, "another socket has this name", "end the program that holds it");
      return;
    }
    if (!socket.is_staged()) return;
    const std::string path = name.file();
    const auto parent = std::filesystem::path(path).parent_path();
    struct stat there{};
    if (stat(parent.c_str(), &there) != 0)
      return diagnostics.refuse(subject, "the directory of its file does not exist", "make " + parent.string());
    if (lstat(path.c_str(), &there) != 0) return;
    if (!S_ISSOCK(there.st_mode))
      diagnostics.refuse(subject, "there is another file under its name", "move it away");
    else if (taken.contains(fmt::format("inode {}", there.st_ino)))
      diagnostics.refuse(subject, "the socket of another program is bound to its name", "end that program");
  }
};

}  // namespace

void UnixSocketRoom::leftovers(const model::Application& application, std::vector<Leftover>& found) const {
  for (const auto& [id, description] : application.descriptions) {
    const auto* socket = description.state.as<UnixSocket>();
    if (socket == nullptr || !socket->is_staged()) continue;
    const auto path = socket->name.path();
    found.push_back({"file of a socket: " + path, fmt::format("rm '{}'; a restore replaces it", path)});
  }
}

void UnixSocketRoom::validate_all(const model::Application& application, Diagnostics& diagnostics) const {
  std::set<std::string> taken;  // abstract names, and inodes of sockets' files
  bool is_listed = false;
  for (const auto& [id, description] : application.descriptions) {
    const auto* socket = description.state.as<UnixSocket>();
    if (socket == nullptr || description.given >= 0 || socket->name.text.empty()) continue;
    if (!std::exchange(is_listed, true)) {
      const auto sockets = kernel::list_unix_sockets();
      if (!sockets) return diagnostics.refuse("unix sockets", sockets.error().message(), "allow netlink sockets");
      for (const auto& info : *sockets) {
        if (info.state == TCP_ESTABLISHED && info.type != SOCK_DGRAM) continue;
        if (info.name.empty()) continue;
        taken.insert(info.name.front() == 0 ? text_of(info.name) : fmt::format("inode {}", info.file_inode));
      }
    }
    validate_name(*socket, taken, diagnostics);
  }
}

std::string shown_name(const std::string& text) {
  std::string shown = text;
  if (!shown.empty() && shown.front() == 0) shown.front() = '@';
  std::ranges::replace_if(shown, [](unsigned char c) { return c < ' ' || c == 127; }, '?');
  return shown;
}

bool UnixSocket::equals(const model::KindValue& other) const {
  const auto* s = dynamic_cast<const UnixSocket*>(&other);
  return s != nullptr && number == s->number && type == s->type && is_listening == s->is_listening &&
         backlog == s->backlog && pending == s->pending && peer == s->peer && peer_gone == s->peer_gone &&
         peer_name == s->peer_name && owner == s->owner && peer_ids == s->peer_ids && outside == s->outside &&
         reset == s->reset && shutdown == s->shutdown && name == s->name && options == s->options && queue == s->queue;
}

std::string UnixSocket::describe() const {
  const std::string_view shape = type == SOCK_STREAM ? "stream" : is_datagram() ? "datagram" : "seqpacket";
  std::string text = fmt::format("unix {} socket", shape);
  if (!name.text.empty()) text += " " + shown_name(name.text) + (name.unlinked ? " (unlinked)" : "");
  if (!name.moved_to.empty()) text += " (now " + shown_name(name.moved_to) + ")";
  if (is_listening) text += fmt::format(", listening ({} wait)", pending.size());
  if (peer != 0) text += fmt::format(", connected to {}", peer);
  if (peer_gone) text += ", its peer has gone";
  if (outside) text += ", connected to " + shown_name(*outside) + " outside of the tree";
  if (shutdown != 0) text += fmt::format(", shut down ({})", shutdown);
  if (!queue.empty()) text += fmt::format(", {} messages wait", queue.size());
  return text;
}

const FileRoom& unix_socket_room() {
  static const UnixSocketRoom room;
  return room;
}

}  // namespace stasis::resource
