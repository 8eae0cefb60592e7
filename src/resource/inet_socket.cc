// Internet sockets: capture and images.
//
// All is asked through duplicates of their descriptors. Connections are read when all are known: their packets must be
// dropped before the first is looked at, for the kernel receives and acknowledges while the tasks stand still.
#include "resource/inet_socket.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/tcp.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "kernel/descriptor_bag.h"
#include "kernel/sock_diag.h"
#include "kernel/socket_option.h"
#include "resource/anonymous_room.h"
#include "resource/descriptors.h"
#include "resource/ended_connection.h"
#include "resource/kernel_access.h"
#include "resource/network_facts.h"
#include "resource/socket_more.h"
#include "resource/socket_probe.h"
#include "resource/urgent_data.h"

namespace stasis::resource {
namespace {

constexpr int protocol_mptcp = 262, protocol_udplite = 136, udp_cork = 1;

kernel::Endpoint name_of(int fd, int (*ask)(int, sockaddr*, socklen_t*)) {
  sockaddr_storage storage{};
  socklen_t size = sizeof storage;
  if (ask(fd, reinterpret_cast<sockaddr*>(&storage), &size) != 0) storage.ss_family = AF_UNSPEC;
  return kernel::endpoint_of(storage);
}

/// Link-local and the like: which device is meant is part of the address (RFC 4007).
bool needs_device(const kernel::Endpoint& endpoint) {
  const auto& a = endpoint.address;
  if (endpoint.family != AF_INET6) return false;
  const bool is_link_local = a[0] == 0xfe && (a[1] & 0xc0) == 0x80;
  const bool is_near_multicast = a[0] == 0xff && ((a[1] & 0xf) == 1 || (a[1] & 0xf) == 2);
  return is_link_local || is_near_multicast;
}

/// Connections of the tree that is being captured: found first, read once all are known.
struct Connections {
  struct One {
    ObjectId description;
    std::string subject;
    kernel::Connection ends;
  };
  InetOptionReader options;
  MembershipReader memberships;
  /// Of datagrams and raw sockets, by family and protocol, then inode: how they are shut down.
  std::map<std::pair<int, int>, kernel::Shutdowns> shutdowns;
  std::map<std::pair<std::string, std::string>, bool> foreign;               ///< addresses with devices: none has them
  std::map<std::string, std::map<uint32_t, kernel::Endpoint>> without_port;  ///< peers, by table and inode
  std::vector<One> found;
  std::optional<kernel::DescriptorBag> descriptors;  ///< of those, in the same order
  std::unique_ptr<NetworkLock> lock;

  Status add(std::string subject, const kernel::Connection& ends, UniqueFd fd) {
    if (!descriptors) descriptors = TRY(kernel::DescriptorBag::create());
    found.push_back({ObjectId{}, std::move(subject), ends});
    return descriptors->put(std::move(fd));
  }
};

/// Of two sockets with the same port: whether their addresses overlap (net/ipv4/inet_connection_sock.c,
/// inet_rcv_saddr_equal).
bool are_in_each_others_way(const InetSocket& a, const InetSocket& b) {
  const auto& on = a.options.device;
  if (!on.empty() && !b.options.device.empty() && on != b.options.device) return false;
  if (a.what.family == b.what.family)
    return !a.local.has_address() || !b.local.has_address() || a.local.address == b.local.address;
  const auto& six = a.what.family == AF_INET6 ? a : b;
  return !six.only_ipv6 && (!six.local.has_address() || kernel::as_sent(six.local).family == AF_INET);
}

class InetSocketRoom final : public FileRoom {
 public:
  std::string_view kind() const override { return "inet socket"; }

  // ---- capture

  bool recognises(const DescriptorProbe& probe) const override {
    if (!probe.link.starts_with("socket:[")) return false;
    const auto family = socket_family(probe);
    return family == AF_INET || family == AF_INET6;
  }

  Result<model::KindState> capture(CaptureContext& context, const DescriptorProbe& probe) const override {
    auto socket = std::make_shared<InetSocket>();
    TRY_IN("look at " + probe.subject, look(context, probe, TRY(probe.duplicate()), *socket));
    return model::KindState{std::move(socket)};
  }

  Status finish_capture(CaptureContext& context) const override {
    auto& application = context.application;
    auto& connections = context.kept<Connections>();
    auto& network = context.kept<NetworkCapture>();
    name_connections(application, connections);
    if (connections.found.empty() || context.diagnostics.refused()) return {};
    std::vector<kernel::Connection> ends;
    for (const auto& one : connections.found) ends.push_back(one.ends);
    connections.lock = TRY_IN("drop the packets of connections", NetworkLock::hold(network.policy.lock, ends));
    network.lock = connections.lock->record();
    network.on_survival([&connections] { connections.lock.reset(); });
    network.on_death([&connections] { return end_silently(connections); });
    TRY_IN("read TCP connections", read(context, connections));
    return {};
  }

  // ---- images

  Status encode(const model::Application&, const model::OpenDescription& description,
                image::FileRecords& records) const override {
    const auto& socket = *description.state.as<InetSocket>();
    image::FileRecord record;
    record.set_type(INETSK), record.set_id(description.id.value);
    auto& entry = *record.mutable_isk();
    entry.set_id(description.id.value), entry.set_ino(socket.number);
    entry.set_family(static_cast<uint32_t>(socket.what.family)),
        entry.set_type(static_cast<uint32_t>(socket.what.type));
    entry.set_proto(static_cast<uint32_t>(socket.what.protocol)), entry.set_state(static_cast<uint32_t>(socket.state));
    entry.set_src_port(socket.local.port), entry.set_dst_port(socket.remote.port);
    encode_address(socket.local, *entry.mutable_src_addr());
    encode_address(socket.remote, *entry.mutable_dst_addr());
    entry.set_flags(description.flags), entry.set_backlog(socket.backlog);
    encode_owner(description.owner, *entry.mutable_fown());
    encode_socket_options(socket.options, *entry.mutable_opts());
    socket_more_entry more;
    encode_inet_options(socket.inet_options, socket.what, entry, more);
    if (socket.what.family == AF_INET6) entry.set_v6only(socket.only_ipv6);
    if (needs_device(socket.local) && !socket.options.device.empty()) entry.set_ifname(socket.options.device);
    if (socket.shutdown != 0) entry.set_shutdown(static_cast<sk_shutdown>(socket.shutdown));
    if (socket.bound_freely) more.set_bound_freely(true);
    encode_ended(socket, more);
    if (socket.owner) more.set_uid(socket.owner->uid), more.set_gid(socket.owner->gid);
    encode_memberships(socket.memberships, socket.what.family, more);
    more.set_id(description.id.value);
    TRY(add_socket_more(more, records));
    records.files.push_back(std::move(record));
    if (!socket.stream) return {};
    return encode_stream(socket.number, *socket.stream, records.directory());
  }

  bool decodes(const image::FileRecords&, const image::FileRecord& record) const override {
    return record.type() == INETSK;
  }

  Result<model::OpenDescription> decode(const image::FileRecords& records, const image::FileRecord& record,
                                        model::Application&) const override {
    const std::string where = fmt::format("files.img, file {}", record.id());
    if (!record.has_isk()) return bad_entry(kind(), record, "type", "there is no record of that kind in it");
    const auto& entry = record.isk();
    auto socket = std::make_shared<InetSocket>();
    TRY(decode_kind(entry, where, *socket));
    TRY(decode_ends(entry, where, *socket));
    socket->options = TRY(decode_socket_options(entry.opts(), where + ", field isk.opts"));
    if (socket->options.device.empty()) socket->options.device = entry.ifname();
    const auto more = TRY(socket_more(records, record.id()));
    socket->inet_options = TRY(decode_inet_options(entry, more, socket->what, where));
    socket->memberships =
        TRY(decode_memberships(more, socket->what.family, fmt::format("sockets-more.img, id {}", more.id())));
    socket->bound_freely = more.bound_freely();
    if (more.has_uid() && more.has_gid()) socket->owner = {more.uid(), more.gid()};
    TRY(decode_ended(more, *socket));
    if (socket->has_connection()) socket->stream = TRY(decode_stream(socket->number, records.directory()));
    model::OpenDescription description;
    description.id = ObjectId{record.id()}, description.flags = entry.flags();
    description.owner = decode_owner(entry.fown());
    set_state(description, std::move(socket));
    return description;
  }

  /// A port that a listening socket shares with another, some without saying so any more, can only be had by who says
  /// it. Those that do not listen need say no more than SO_REUSEADDR, which all do while they are made.
  Status finish_decode(model::Application& application) const override {
    std::map<uint16_t, std::vector<ObjectId>> by_port;
    for (const auto& [id, description] : application.descriptions) {
      const auto* socket = description.state.as<InetSocket>();
      if (socket != nullptr && socket->is_tcp() && !socket->has_connection() && socket->local.port != 0)
        by_port[socket->local.port].push_back(id);
    }
    for (const auto& [port, sharers] : by_port) {
      for (const ObjectId id : sharers) {
        auto& description = application.descriptions.at(id);
        const auto& own = *description.state.as<InetSocket>();
        const bool shares = std::ranges::any_of(sharers, [&](ObjectId other) {
          const auto& theirs = *application.descriptions.at(other).state.as<InetSocket>();
          return other != id && (own.is_listening() || theirs.is_listening()) && are_in_each_others_way(own, theirs);
        });
        if (!shares) continue;
        auto socket = std::make_shared<InetSocket>(own);
        socket->shares_port = true;
        set_state(description, std::move(socket));
      }
    }
    return {};
  }

  // ---- restore

  void validate_all(const model::Application& application, Diagnostics& diagnostics) const override {
    validate_inet_sockets(application, diagnostics);
  }

  bool can_be_inherited(const model::OpenDescription&) const override { return true; }
  bool reuses_address(const model::OpenDescription& description) const override {
    return description.state.as<InetSocket>()->options.values.contains(SO_REUSEADDR);
  }

  Status make(const model::Application&, std::span<const plan::Placement> placements, plan::Sink& sink) const override {
    for (const auto& placement : placements) make_inet_socket(placement, sink);
    return {};
  }

  void start(const model::Application&, const model::OpenDescription& description, int fd,
             plan::Sink& sink) const override {
    start_inet_socket(description, fd, sink);
  }

 private:
  static Status look(CaptureContext& context, const DescriptorProbe& probe, int fd, InetSocket& socket) {
    auto& connections = context.kept<Connections>();
    const auto domain = TRY(kernel::socket_option<int>(fd, SOL_SOCKET, SO_DOMAIN, "SO_DOMAIN"));
    socket.what = {domain, TRY(kernel::socket_option<int>(fd, SOL_SOCKET, SO_TYPE, "SO_TYPE")),
                   TRY(kernel::socket_option<int>(fd, SOL_SOCKET, SO_PROTOCOL, "SO_PROTOCOL"))};
    if (!is_supported(context, probe, fd, socket.what)) return {};
    socket.local = without_scope(name_of(fd, getsockname)), socket.remote = without_scope(name_of(fd, getpeername));
    socket.local.family = socket.remote.family = socket.what.family;
    if (domain == AF_INET6)
      socket.only_ipv6 = TRY(kernel::socket_option<int>(fd, SOL_IPV6, IPV6_V6ONLY, "IPV6_V6ONLY")) != 0;
    // As bind(2) has it for an IPv6 address, and connect(2) has not (net/ipv6/af_inet6.c, __inet6_bind).
    if (socket.local.has_address() && kernel::as_sent(socket.local).family == AF_INET6) socket.only_ipv6 = true;
    socket.owner = {probe.stat.st_uid, probe.stat.st_gid};
    socket.options = TRY(capture_socket_options(fd, probe.subject));
    if (socket.is_tcp())
      TRY(look_at_tcp(context, probe, fd, socket));
    else
      TRY(look_at_datagrams(context, probe, fd, socket));
    const bool was_connected = socket.has_connection() || (socket.is_tcp() && socket.shutdown != 0);
    socket.inet_options = TRY(connections.options.read(fd, socket.what, was_connected));
    socket.bound_freely = socket.local.has_address() && !is_bound_anywhere(socket) && is_foreign(connections, socket);
    if (socket.is_tcp()) return {};
    socket.memberships = TRY(connections.memberships.read(fd, socket.what.family));
    // One that is connected hardly sends to others: that saves a look into the kernel's memory.
    if (socket.remote.has_address()) return {};
    if (const auto& memory = context.kept<KernelAccess>().memory)
      socket.inet_options.multicast_device = TRY(multicast_device(*memory, fd));
    return {};
  }

  static bool is_foreign(Connections& connections, const InetSocket& socket) {
    auto address = socket.local;
    address.port = 0;
    const auto [known, fresh] = connections.foreign.try_emplace({kernel::to_text(address), socket.options.device});
    if (fresh) known->second = try_to_bind(socket, address) == EADDRNOTAVAIL;
    return known->second;
  }

  static kernel::Endpoint without_scope(kernel::Endpoint endpoint) {
    endpoint.scope = 0;  // the device that a socket is bound to is among its options
    return endpoint;
  }

  static bool is_supported(CaptureContext& context, const DescriptorProbe& probe, int fd, const InetKind& what) {
    if (kernel::is_of_other_network(fd)) {
      refuse_other_network(context, probe);
      return false;
    }
    constexpr int known[] = {IPPROTO_TCP, IPPROTO_UDP, protocol_udplite, IPPROTO_ICMP, IPPROTO_ICMPV6};
    if (what.type == SOCK_RAW || std::ranges::find(known, what.protocol) != std::end(known)) return true;
    if (what.protocol == protocol_mptcp) {
      context.diagnostics.refuse(probe.subject, "it is a multipath TCP socket, which the kernel cannot repair",
                                 "have the program use plain TCP (for Go: GODEBUG=multipathtcp=0)");
    } else {
      context.diagnostics.refuse(probe.subject,
                                 fmt::format("it is a socket of protocol {}, which cannot be saved", what.protocol),
                                 "TCP, UDP, UDP-Lite, ping and raw sockets can be saved; close it before the dump");
    }
    return false;
  }

  static Status look_at_tcp(CaptureContext& context, const DescriptorProbe& probe, int fd, InetSocket& socket) {
    const auto& policy = context.kept<NetworkCapture>().policy;
    refuse_upper_layer(context, probe, fd);
    TRY(refuse_signed(context, probe, fd));
    auto info = TRY(kernel::tcp_info(fd));
    if (info.state == TCP_SYN_SENT) {
      TRY(find_remote(probe, fd, socket));
      info = TRY(kernel::tcp_info(fd));  // the answer may have come in between
    }
    socket.state = info.state, socket.backlog = info.backlog;
    const short events = poll_events(fd, POLLPRI | POLLRDHUP);
    const bool is_looked_at = socket.has_connection() && kernel::can_look_behind_marks(fd);
    if ((events & POLLPRI) != 0 && !is_looked_at) {
      context.diagnostics.refuse_for_now(probe.subject, "urgent data (MSG_OOB) waits in it",
                                         "let the program receive it");
      return {};
    }
    if (socket.is_listening()) {
      look_at_pending(context, probe, info.pending);
      return {};
    }
    if (!socket.has_connection()) return look_at_ended(context, probe.subject, fd, socket);
    if ((events & POLLRDHUP) != 0 && !kernel::has_received_fin(socket.state)) socket.shutdown = shut_read;
    if (!policy.tcp_established && !policy.tcp_close) {
      context.diagnostics.refuse(
          probe.subject, fmt::format("it is a TCP connection to {}", kernel::to_text(socket.remote)),
          "pass --tcp-established, and it goes on after the restore; or --tcp-close, and it is closed");
      return {};
    }
    if (policy.tcp_close) return {};
    if (probe.witness == getpid()) {
      context.diagnostics.refuse_for_now(probe.subject,
                                         "the connection is on its way through another socket (SCM_RIGHTS)",
                                         "let the program receive it");
      return {};
    }
    UniqueFd kept(fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!kept.valid()) return fail_errno("dup", probe.subject);
    auto& connections = context.kept<Connections>();
    TRY(connections.add(probe.subject, socket.connection(), std::move(kept)));
    socket.number = static_cast<uint32_t>(connections.found.size());  // by which finish_capture finds its description
    return {};
  }

  /// Kernel TLS and the like: what it has encrypted, and with which record it goes on, repair mode does not know.
  static void refuse_upper_layer(CaptureContext& context, const DescriptorProbe& probe, int fd) {
    char name[16] = {};  // TCP_ULP_NAME_MAX
    socklen_t size = sizeof name;
    if (getsockopt(fd, SOL_TCP, TCP_ULP, name, &size) != 0 || size == 0 || name[0] == '\0') return;
    context.diagnostics.refuse(
        probe.subject,
        fmt::format("the kernel has taken over a layer above TCP ({}, TCP_ULP), which cannot be repaired",
                    std::string_view(name, strnlen(name, sizeof name))),
        "have the program do it itself (for TLS: without kTLS), or close it before the dump");
  }

  /// Keys of TCP_MD5SIG no interface tells (sock_diag(7) would, but not of all kernels). Where the kernel's memory
  /// cannot be read there are taken to be none.
  static Status refuse_signed(CaptureContext& context, const DescriptorProbe& probe, int fd) {
    const auto& memory = context.kept<KernelAccess>().memory;
    if (!memory || !memory->has("tcp_sock", "md5sig_info")) return {};
    if (TRY(memory->get(TRY(memory->socket(fd)), "tcp_sock", "md5sig_info")) == 0) return {};
    context.diagnostics.refuse(probe.subject,
                               "what it sends and receives is signed with keys (TCP_MD5SIG), which are not saved",
                               "close it before the dump");
    return {};
  }

  /// Listed again for each: few are in that state, and none for long.
  static Status find_remote(const DescriptorProbe& probe, int fd, InetSocket& socket) {
    const auto connecting = TRY(kernel::list_connecting(socket.what.family));
    const auto found = connecting.find(static_cast<uint32_t>(probe.stat.st_ino));
    socket.remote = found != connecting.end() ? found->second : without_scope(name_of(fd, getpeername));
    socket.remote.family = socket.what.family;
    return {};
  }

  /// The kernel lists them (without inodes), but only accept(2) leads to what they have received, and that cannot be
  /// taken back: no call puts a connection into such a queue. Repair mode makes connected sockets; the one that a
  /// handshake leads to has a sequence number of the kernel's own choice, which its peer would not know (net/ipv4/
  /// tcp_ipv4.c, tcp_v4_init_seq). All that begins from a given number is bpf_sk_assign_tcp_reqsk (Linux 6.9), a call
  /// for BPF programs of a network device.
  static void look_at_pending(CaptureContext& context, const DescriptorProbe& probe, uint32_t pending) {
    if (pending == 0) return;
    if (context.kept<NetworkCapture>().policy.skip_in_flight) {
      context.diagnostics.note(probe.subject, fmt::format("{} connections wait to be accepted, and are lost", pending));
      return;
    }
    context.diagnostics.refuse_for_now(probe.subject, fmt::format("{} connections wait to be accepted", pending),
                                       "let the program accept them, or pass --skip-in-flight, and they are lost");
  }

  /// poll(2) does not tell of a socket that only sends nothing more; the kernel's list does, if it is bound.
  static Result<uint32_t> listed_shutdown(Connections& connections, const DescriptorProbe& probe,
                                          const InetKind& what) {
    const int protocol = what.type == SOCK_RAW ? int{IPPROTO_RAW} : what.protocol;
    const auto [known, fresh] = connections.shutdowns.try_emplace({what.family, protocol});
    if (fresh) known->second = TRY(kernel::list_shutdowns(what.family, protocol));
    const auto found = known->second.find(static_cast<uint32_t>(probe.stat.st_ino));
    return found == known->second.end() ? 0 : found->second;
  }

  /// In what table of /proc/net the kernel lists such sockets.
  static std::string table_of(const InetKind& what) {
    const std::string name = what.type == SOCK_RAW               ? "raw"
                             : what.protocol == IPPROTO_UDP      ? "udp"
                             : what.protocol == protocol_udplite ? "udplite"
                                                                 : "icmp";
    return what.family == AF_INET6 ? name + "6" : name;
  }

  static Status find_peer_without_port(CaptureContext& context, const DescriptorProbe& probe, InetSocket& socket) {
    const auto table = table_of(socket.what);
    auto& tables = context.kept<Connections>().without_port;
    auto known = tables.find(table);
    if (known == tables.end()) known = tables.emplace(table, TRY(kernel::list_peers(table, socket.what.family))).first;
    const auto found = known->second.find(static_cast<uint32_t>(probe.stat.st_ino));
    if (found != known->second.end()) socket.remote = found->second;
    return {};
  }

  static Status look_at_datagrams(CaptureContext& context, const DescriptorProbe& probe, int fd, InetSocket& socket) {
    if (!socket.remote.has_address()) TRY(find_peer_without_port(context, probe, socket));
    socket.state = socket.remote.has_address() ? TCP_ESTABLISHED : TCP_CLOSE;
    const short events = poll_events(fd, POLLPRI | POLLRDHUP);
    if ((events & POLLRDHUP) != 0) socket.shutdown = (events & POLLHUP) != 0 ? shut_read | shut_write : shut_read;
    socket.shutdown |= TRY(listed_shutdown(context.kept<Connections>(), probe, socket.what));
    uint32_t corked = 0;
    socklen_t size = sizeof corked;
    int waiting = 0;
    const bool is_udp = socket.what.type == SOCK_DGRAM && !socket.is_ping();
    if (is_udp && getsockopt(fd, IPPROTO_UDP, udp_cork, &corked, &size) == 0 && corked != 0 &&
        ioctl(fd, TIOCOUTQ, &waiting) == 0 && waiting > 0) {
      context.diagnostics.refuse_for_now(probe.subject, "a datagram is being put together in it (UDP_CORK)",
                                         "what it holds cannot be seen: let the program send it");
    }
    if (ioctl(fd, FIONREAD, &waiting) == 0 && waiting > 0) {
      context.diagnostics.warn(probe.subject, "datagrams that wait to be received are lost",
                               "whoever uses such sockets has to expect that");
    }
    return {};
  }

  /// Until now a connection's socket has had its place in the list for a number.
  static void name_connections(model::Application& application, Connections& connections) {
    for (auto& [id, description] : application.descriptions) {
      const auto* captured = description.state.as<InetSocket>();
      if (captured == nullptr) continue;
      if (captured->number != 0) connections.found[captured->number - 1].description = id;
      auto socket = std::make_shared<InetSocket>(*captured);
      socket->number = id.value;
      set_state(description, std::move(socket));
    }
  }

  static Status read(CaptureContext& context, Connections& connections) {
    auto& application = context.application;
    const auto read_batch = [&](size_t first, std::span<const UniqueFd> descriptors) -> Status {
      std::vector<kernel::StreamToRead> streams;
      for (size_t index = 0; index < descriptors.size(); ++index)
        streams.push_back({descriptors[index].get(), connections.found[first + index].subject});
      TRY(kernel::read_streams(streams));
      for (size_t index = 0; index < streams.size(); ++index) {
        const auto& found = connections.found[first + index];
        auto& description = application.descriptions.at(found.description);
        auto socket = std::make_shared<InetSocket>(*description.state.as<InetSocket>());
        // It may have changed until packets were dropped.
        socket->state = TRY(kernel::tcp_info(descriptors[index].get())).state;
        if (socket->has_connection()) {
          socket->stream = std::move(streams[index].stream);
          TRY(complete(context, found.subject, descriptors[index].get(), *socket));
        } else {
          TRY(look_at_ended(context, found.subject, descriptors[index].get(), *socket));  // in the meantime
        }
        set_state(description, std::move(socket));
      }
      return {};
    };
    return connections.descriptors->each_batch(read_batch, kernel::DescriptorBag::Then::keep);
  }

  /// Where the kernel's memory cannot be read, what is announced is announced again, and what is sent is not urgent.
  static Status complete(CaptureContext& context, const std::string& subject, int fd, InetSocket& socket) {
    const auto& memory = context.kept<KernelAccess>().memory;
    if (!memory || !kernel::is_connected(socket.state)) return {};
    if (TRY(add_urgent_data(*memory, fd, kernel::has_received_fin(socket.state), *socket.stream))) return {};
    context.diagnostics.refuse_for_now(
        subject, "urgent data (MSG_OOB) has been received before others, which are still on their way",
        "let the program receive them");
    return {};
  }

  /// We have the last descriptors of the connections, whose packets are dropped: nobody learns that they end here.
  static Status end_silently(Connections& connections) {
    const auto repair = [](size_t, std::span<const UniqueFd> descriptors) -> Status {
      for (const auto& fd : descriptors) TRY(kernel::set_repair(fd.get(), true));
      return {};
    };
    TRY(connections.descriptors->each_batch(repair, kernel::DescriptorBag::Then::close));
    return connections.lock->keep();
  }

  // ---- records

  template <typename Words>
  static void encode_address(const kernel::Endpoint& endpoint, Words& words) {
    for (size_t at = 0; at < endpoint.address_size(); at += sizeof(uint32_t)) {
      uint32_t word = 0;
      std::memcpy(&word, &endpoint.address[at], sizeof word);
      words.Add(word);
    }
  }

  template <typename Words>
  static bool decode_address(const Words& words, kernel::Endpoint& endpoint) {
    // The oldest images of CRIU have four words in any case.
    const size_t needed = endpoint.address_size() / sizeof(uint32_t);
    if (static_cast<size_t>(words.size()) < needed || words.size() > 4) return false;
    for (size_t index = 0; index < needed; ++index) {
      const uint32_t word = words.Get(static_cast<int>(index));
      std::memcpy(&endpoint.address[index * sizeof word], &word, sizeof word);
    }
    return true;
  }

  static Status decode_kind(const inet_sk_entry& entry, const std::string& where, InetSocket& socket) {
    const auto reject = [&](std::string_view field, std::string cause) {
      return fail(
          Error::invalid("decode inet socket", std::move(cause), fmt::format("{}, field isk.{}", where, field)));
    };
    if (entry.family() != AF_INET && entry.family() != AF_INET6)
      return reject("family", fmt::format("{} is no internet family", entry.family()));
    if (entry.type() != SOCK_STREAM && entry.type() != SOCK_DGRAM && entry.type() != SOCK_RAW)
      return reject("type", fmt::format("{} is no type of internet sockets", entry.type()));
    socket.what = {static_cast<int>(entry.family()), static_cast<int>(entry.type()), static_cast<int>(entry.proto())};
    // CRIU leaves 0 where that stands for the protocol of the type.
    if (socket.what.protocol == 0 && socket.what.type == SOCK_STREAM) socket.what.protocol = IPPROTO_TCP;
    if (socket.what.protocol == 0 && socket.what.type == SOCK_DGRAM) socket.what.protocol = IPPROTO_UDP;
    const int ping = entry.family() == AF_INET6 ? int{IPPROTO_ICMPV6} : int{IPPROTO_ICMP};
    const int of_datagrams[] = {IPPROTO_UDP, protocol_udplite, ping};
    // A raw socket may have one that does not fit into a packet: it receives nothing (IPPROTO_MAX, linux/in.h).
    const bool known = socket.what.type == SOCK_RAW ? entry.proto() <= uint32_t{protocol_mptcp}
                       : socket.what.type == SOCK_STREAM
                           ? socket.is_tcp()
                           : std::ranges::find(of_datagrams, socket.what.protocol) != std::end(of_datagrams);
    if (!known) return reject("proto", fmt::format("{} is no protocol of such sockets", entry.proto()));
    if (entry.ino() == 0) return reject("ino", "0 is no inode");
    socket.number = entry.ino();
    return {};
  }

  static Status decode_ends(const inet_sk_entry& entry, const std::string& where, InetSocket& socket) {
    const auto reject = [&](std::string_view field, std::string cause) {
      return fail(
          Error::invalid("decode inet socket", std::move(cause), fmt::format("{}, field isk.{}", where, field)));
    };
    socket.local.family = socket.remote.family = socket.what.family;
    if (entry.src_port() > UINT16_MAX) return reject("src_port", fmt::format("{} is no port", entry.src_port()));
    if (entry.dst_port() > UINT16_MAX) return reject("dst_port", fmt::format("{} is no port", entry.dst_port()));
    socket.local.port = static_cast<uint16_t>(entry.src_port());
    socket.remote.port = static_cast<uint16_t>(entry.dst_port());
    if (!decode_address(entry.src_addr(), socket.local)) return reject("src_addr", "it is no address of the family");
    if (!decode_address(entry.dst_addr(), socket.remote)) return reject("dst_addr", "it is no address of the family");
    socket.state = static_cast<int>(entry.state());
    const bool known = socket.is_tcp() ? socket.state == TCP_CLOSE || socket.is_listening() || socket.has_connection()
                                       : socket.state == TCP_CLOSE || socket.state == TCP_ESTABLISHED;
    if (!known) return reject("state", fmt::format("no such socket is in state {}", entry.state()));
    if (socket.has_connection() && (socket.local.port == 0 || socket.remote.port == 0))
      return reject(socket.local.port == 0 ? "src_port" : "dst_port", "a connection has ports");
    if (!socket.is_tcp() && !socket.remote.has_address()) socket.state = TCP_CLOSE;
    socket.backlog = socket.is_listening() ? entry.backlog() : 0;
    if (socket.backlog > INT32_MAX) return reject("backlog", fmt::format("{} is too many", entry.backlog()));
    socket.only_ipv6 = socket.what.family == AF_INET6 && entry.v6only();
    if (entry.ifname().size() >= IFNAMSIZ) return reject("ifname", "no device has so long a name");
    socket.shutdown = entry.shutdown();
    return {};
  }
};

}  // namespace

const FileRoom& inet_socket_room() {
  static const InetSocketRoom room;
  return room;
}

}  // namespace stasis::resource
