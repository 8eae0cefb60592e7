// What the kernel keeps for a netlink socket beside its address, groups and options (queues of NETLINK_NETFILTER, who
// audits) depends on the protocol, and is asked for by messages: it is not saved.
#include "resource/netlink_socket.h"

#include <fmt/format.h>
#include <linux/netlink.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <map>
#include <optional>

#include "kernel/inet.h"
#include "kernel/socket_option.h"
#include "resource/anonymous_room.h"
#include "resource/socket_more.h"
#include "resource/socket_options.h"
#include "resource/socket_probe.h"

namespace stasis::resource {
namespace {

using plan::call;

constexpr int sol_netlink = 270;
/// Options with an integer value that is 0 in a new socket.
constexpr int options[] = {NETLINK_PKTINFO, NETLINK_BROADCAST_ERROR, NETLINK_NO_ENOBUFS,     NETLINK_CAP_ACK,
                           NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK,  NETLINK_LISTEN_ALL_NSID};
constexpr size_t most_group_words = 2048;  // a bound for hostile images: 65536 groups

struct NetlinkSocket final : model::KindValue {
  int type = SOCK_RAW, protocol = 0;
  uint32_t port = 0;             ///< 0: not bound
  std::vector<uint32_t> groups;  ///< a bit for each, the lowest is group 1; no zeros at the end
  uint32_t peer_port = 0, peer_groups = 0;
  std::map<int, uint32_t> values;  ///< of `options`, where they are not 0
  struct Ids {
    uint32_t uid = 0, gid = 0;
    friend bool operator==(const Ids&, const Ids&) = default;
  };
  std::optional<Ids> owner;
  SocketOptions socket_options;

  bool is_connected() const { return peer_port != 0 || peer_groups != 0; }
  std::string_view kind() const override { return "netlink socket"; }
  bool equals(const model::KindValue& other) const override {
    const auto* s = dynamic_cast<const NetlinkSocket*>(&other);
    return s != nullptr && type == s->type && protocol == s->protocol && port == s->port && groups == s->groups &&
           peer_port == s->peer_port && peer_groups == s->peer_groups && values == s->values && owner == s->owner &&
           socket_options == s->socket_options;
  }
  std::string describe() const override {
    std::string text = fmt::format("netlink socket of protocol {}, port {}", protocol, port);
    for (const uint32_t word : groups) text += fmt::format(", groups {:#x}", word);
    return text;
  }
};

Result<std::vector<uint32_t>> groups_of(int fd) {
  uint32_t none = 0;
  socklen_t size = 0;  // asked for first (net/netlink/af_netlink.c, netlink_getsockopt)
  if (getsockopt(fd, sol_netlink, NETLINK_LIST_MEMBERSHIPS, &none, &size) != 0)
    return fail_errno("NETLINK_LIST_MEMBERSHIPS");
  std::vector<uint32_t> groups(size / sizeof(uint32_t));
  if (!groups.empty() && getsockopt(fd, sol_netlink, NETLINK_LIST_MEMBERSHIPS, groups.data(), &size) != 0)
    return fail_errno("NETLINK_LIST_MEMBERSHIPS");
  while (!groups.empty() && groups.back() == 0) groups.pop_back();
  return groups;
}

class NetlinkSocketRoom final : public FileRoom {
 public:
  std::string_view kind() const override { return "netlink socket"; }

  bool recognises(const DescriptorProbe& probe) const override {
    return probe.link.starts_with("socket:[") && socket_family(probe) == AF_NETLINK;
  }

  Result<model::KindState> capture(CaptureContext& context, const DescriptorProbe& probe) const override {
    const int fd = TRY(probe.duplicate());
    auto socket = std::make_shared<NetlinkSocket>();
    if (kernel::is_of_other_network(fd)) {
      refuse_other_network(context, probe);
      return model::KindState{std::move(socket)};
    }
    TRY_IN("look at " + probe.subject, look(probe, fd, *socket));
    look_at_queue(context, probe, fd);
    return model::KindState{std::move(socket)};
  }

  Status encode(const model::Application&, const model::OpenDescription& description,
                image::FileRecords& records) const override {
    const auto& socket = *description.state.as<NetlinkSocket>();
    image::FileRecord record;
    record.set_type(NETLINKSK), record.set_id(description.id.value);
    auto& entry = *record.mutable_nlsk();
    entry.set_id(description.id.value), entry.set_ino(description.id.value);
    entry.set_protocol(static_cast<uint32_t>(socket.protocol)), entry.set_state(socket.is_connected() ? 1 : 0);
    entry.set_flags(description.flags), entry.set_portid(socket.port);
    entry.set_dst_portid(socket.peer_port), entry.set_dst_group(socket.peer_groups);
    for (const uint32_t word : socket.groups) entry.add_groups(word);
    encode_owner(description.owner, *entry.mutable_fown());
    encode_socket_options(socket.socket_options, *entry.mutable_opts());
    records.files.push_back(std::move(record));
    socket_more_entry more;
    more.set_id(description.id.value), more.set_type(static_cast<uint32_t>(socket.type));
    if (socket.owner) more.set_uid(socket.owner->uid), more.set_gid(socket.owner->gid);
    for (const auto& [name, value] : socket.values) {
      auto& option = *more.add_options();
      option.set_level(sol_netlink), option.set_name(static_cast<uint32_t>(name)), option.set_value(value);
    }
    return add_socket_more(more, records);
  }

  bool decodes(const image::FileRecords&, const image::FileRecord& record) const override {
    return record.type() == NETLINKSK;
  }

  Result<model::OpenDescription> decode(const image::FileRecords& records, const image::FileRecord& record,
                                        model::Application&) const override {
    if (!record.has_nlsk()) return bad_entry(kind(), record, "type", "there is no record of that kind in it");
    const auto& entry = record.nlsk();
    auto socket = std::make_shared<NetlinkSocket>();
    if (entry.protocol() >= MAX_LINKS)
      return bad_entry(kind(), record, "nlsk.protocol", fmt::format("{} is no protocol", entry.protocol()));
    if (static_cast<size_t>(entry.groups_size()) > most_group_words)
      return bad_entry(kind(), record, "nlsk.groups", "there are not so many groups");
    socket->protocol = static_cast<int>(entry.protocol()), socket->port = entry.portid();
    socket->groups.assign(entry.groups().begin(), entry.groups().end());
    while (!socket->groups.empty() && socket->groups.back() == 0) socket->groups.pop_back();
    socket->peer_port = entry.dst_portid(), socket->peer_groups = entry.dst_group();
    socket->socket_options =
        TRY(decode_socket_options(entry.opts(), fmt::format("files.img, file {}, field nlsk.opts", record.id())));
    TRY(read_more(record, TRY(socket_more(records, record.id())), *socket));
    model::OpenDescription description;
    description.id = ObjectId{record.id()}, description.flags = entry.flags();
    description.owner = decode_owner(entry.fown());
    description.state = {std::move(socket)};
    return description;
  }

  bool can_be_inherited(const model::OpenDescription&) const override { return true; }

  Status make(const model::Application&, std::span<const plan::Placement> placements, plan::Sink& sink) const override {
    for (const auto& placement : placements) make(placement, sink);
    return {};
  }

 private:
  static Status look(const DescriptorProbe& probe, int fd, NetlinkSocket& socket) {
    socket.type = TRY(kernel::socket_option<int>(fd, SOL_SOCKET, SO_TYPE, "SO_TYPE"));
    socket.protocol = TRY(kernel::socket_option<int>(fd, SOL_SOCKET, SO_PROTOCOL, "SO_PROTOCOL"));
    sockaddr_nl name{};
    socklen_t size = sizeof name;
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&name), &size) != 0) return fail_errno("getsockname");
    socket.port = name.nl_pid;
    size = sizeof name;
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&name), &size) != 0) return fail_errno("getpeername");
    socket.peer_port = name.nl_pid, socket.peer_groups = name.nl_groups;
    socket.groups = TRY(groups_of(fd));
    for (const int option : options) {
      const auto value = kernel::socket_option<uint32_t>(fd, sol_netlink, option, "an option");
      if (value && *value != 0) socket.values[option] = *value;  // what the kernel does not have cannot have been set
    }
    socket.owner = {probe.stat.st_uid, probe.stat.st_gid};
    socket.socket_options = TRY(capture_socket_options(fd, probe.subject));
    return {};
  }

  /// An answer that does not come is waited for in vain; who listens to a group has to expect gaps (ENOBUFS).
  static void look_at_queue(CaptureContext& context, const DescriptorProbe& probe, int fd) {
    pollfd asked{fd, POLLIN, 0};
    if (poll(&asked, 1, 0) <= 0 || (asked.revents & POLLIN) == 0) return;
    sockaddr_nl sender{};
    msghdr message{};
    message.msg_name = &sender, message.msg_namelen = sizeof sender;
    if (recvmsg(fd, &message, MSG_PEEK | MSG_DONTWAIT) < 0) return;
    if (sender.nl_groups != 0)
      context.diagnostics.warn(probe.subject, "messages to a group that wait to be received are lost", "");
    else
      context.diagnostics.refuse_for_now(probe.subject, "an answer waits to be received", "let the program receive it");
  }

  Status read_more(const image::FileRecord& record, const socket_more_entry& more, NetlinkSocket& socket) const {
    if (more.has_type()) socket.type = static_cast<int>(more.type());
    if (socket.type != SOCK_RAW && socket.type != SOCK_DGRAM)
      return bad_entry(kind(), record, "nlsk.type", fmt::format("{} is no type of netlink sockets", more.type()));
    if (more.has_uid() && more.has_gid()) socket.owner = {more.uid(), more.gid()};
    for (const auto& option : more.options()) {
      const int name = static_cast<int>(option.name());
      if (option.level() != sol_netlink || std::ranges::find(options, name) == std::end(options))
        return bad_entry(kind(), record, "nlsk.options", fmt::format("option {} does not belong there", name));
      socket.values[name] = option.value();
    }
    return {};
  }

  static void make(const plan::Placement& placement, plan::Sink& sink) {
    const auto& socket = *placement.description->state.as<NetlinkSocket>();
    plan::Perform perform{socket.describe(), "", {}, {}, {call(SYS_socket, AF_NETLINK, socket.type, socket.protocol)}};
    place(placement, perform);
    const int fd = placement.fd;
    auto& calls = perform.calls;
    if (socket.owner) calls.push_back(call(SYS_fchown, fd, socket.owner->uid, socket.owner->gid));
    for (const auto& [name, value] : socket.values)
      calls.push_back(call(SYS_setsockopt, fd, sol_netlink, name, plan::struct_in(value), sizeof value));
    sockaddr_nl address{};
    address.nl_family = AF_NETLINK, address.nl_pid = socket.port;
    if (socket.port != 0) calls.push_back(call(SYS_bind, fd, plan::struct_in(address), sizeof address));
    for (size_t word = 0; word < socket.groups.size(); ++word) {
      for (uint32_t bit = 0; bit < 32; ++bit) {
        const uint32_t group = static_cast<uint32_t>(word) * 32 + bit + 1;
        if ((socket.groups[word] >> bit & 1) == 0) continue;
        calls.push_back(
            call(SYS_setsockopt, fd, sol_netlink, NETLINK_ADD_MEMBERSHIP, plan::struct_in(group), sizeof group));
      }
    }
    address.nl_pid = socket.peer_port, address.nl_groups = socket.peer_groups;
    if (socket.is_connected()) calls.push_back(call(SYS_connect, fd, plan::struct_in(address), sizeof address));
    add_socket_options(socket.socket_options, fd, calls);
    sink.add(std::move(perform));
  }
};

}  // namespace

const FileRoom& netlink_socket_room() {
  static const NetlinkSocketRoom room;
  return room;
}

}  // namespace stasis::resource
