// What getsockopt(2) does not tell, the kernel lists (kernel/sock_diag.h); what it does not list of rings,
// packet_ring.h has. Sockets are bound last of all: no packet comes before everybody is complete, neither the network's
// nor those that lead the kernel through the rings of others.
#include "resource/packet_socket.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <map>
#include <optional>
#include <ranges>

#include "kernel/inet.h"
#include "kernel/sock_diag.h"
#include "kernel/socket_option.h"
#include "resource/anonymous_room.h"
#include "resource/packet_ring.h"
#include "resource/socket_more.h"
#include "resource/socket_options.h"
#include "resource/socket_probe.h"

namespace stasis::resource {
namespace {

using plan::call;

constexpr int sol_packet = 263, legacy_type = SOCK_PACKET;
constexpr int vnet_header_size_option = 24;  // newer than the headers
constexpr uint32_t shortest_vnet_header = 10;
/// Options with an integer value that is 0 in a new socket and that CRIU does not save.
constexpr int other_options[] = {PACKET_TX_HAS_OFF, PACKET_QDISC_BYPASS, PACKET_IGNORE_OUTGOING,
                                 vnet_header_size_option};
constexpr size_t longest_address = 32;  // MAX_ADDR_LEN

/// By index, which is what the kernel knows it by, and by name, which is what people do.
struct Device {
  int index = 0;  ///< 0: none, or all
  std::string name;
  friend bool operator==(const Device&, const Device&) = default;
};

struct Membership {
  Device device;
  uint32_t type = 0;  ///< PACKET_MR_*
  Bytes address;
  friend bool operator==(const Membership&, const Membership&) = default;
};

struct PacketSocket final : model::KindValue {
  int type = SOCK_RAW;
  uint16_t protocol = 0;  ///< ETH_P_*; 0: it receives nothing
  Device device;          ///< 0: all
  uint32_t version = TPACKET_V1, reserve = 0, copy_threshold = 0, timestamp = 0;
  bool auxiliary_data = false, original_device = false, network_header = false, loss = false;
  std::map<int, uint32_t> values;  ///< of `other_options`, where they are not 0
  std::vector<Membership> memberships;
  std::optional<uint32_t> fanout;  ///< as PACKET_FANOUT has it: number, type, flags
  PacketRings rings;
  SocketOptions options;
  struct Ids {
    uint32_t uid = 0, gid = 0;
    friend bool operator==(const Ids&, const Ids&) = default;
  };
  std::optional<Ids> owner;

  std::string_view kind() const override { return "packet socket"; }
  bool equals(const model::KindValue& other) const override {
    const auto* s = dynamic_cast<const PacketSocket*>(&other);
    return s != nullptr && type == s->type && protocol == s->protocol && device == s->device && version == s->version &&
           reserve == s->reserve && copy_threshold == s->copy_threshold && timestamp == s->timestamp &&
           auxiliary_data == s->auxiliary_data && original_device == s->original_device &&
           network_header == s->network_header && loss == s->loss && values == s->values &&
           memberships == s->memberships && fanout == s->fanout && rings == s->rings && options == s->options &&
           owner == s->owner;
  }
  std::string describe() const override {
    return fmt::format("packet socket of protocol {:#x}{}{}", protocol, device.index != 0 ? " on " : "", device.name);
  }
  PacketFrames frames() const {
    const auto chosen = values.find(vnet_header_size_option);
    const uint32_t more = chosen != values.end() ? chosen->second : network_header ? shortest_vnet_header : 0;
    return {version, type == SOCK_RAW, loss, more};
  }
  bool is_bound() const { return type != legacy_type && (protocol != 0 || device.index != 0); }
};

/// All of the namespace, listed when the first is captured.
struct Listed {
  std::optional<std::map<uint32_t, kernel::PacketSocketInfo>> by_inode;
};

Device device_of(int index) {
  char name[IF_NAMESIZE] = {};
  return {index, if_indextoname(static_cast<unsigned>(index), name) != nullptr ? name : ""};
}

bool has_program(uint32_t fanout) {
  const uint32_t type = fanout >> 16 & 0xff;
  return type == PACKET_FANOUT_CBPF || type == PACKET_FANOUT_EBPF;
}

class PacketSocketRoom final : public FileRoom {
 public:
  std::string_view kind() const override { return "packet socket"; }

  // ---- capture

  bool recognises(const DescriptorProbe& probe) const override {
    return probe.link.starts_with("socket:[") && socket_family(probe) == AF_PACKET;
  }

  Result<model::KindState> capture(CaptureContext& context, const DescriptorProbe& probe) const override {
    auto socket = std::make_shared<PacketSocket>();
    const int fd = TRY(probe.duplicate());
    if (kernel::is_of_other_network(fd)) {
      refuse_other_network(context, probe);
      return model::KindState{std::move(socket)};
    }
    auto& listed = context.kept<Listed>().by_inode;
    if (!listed) {
      listed.emplace();
      for (auto& info : TRY(kernel::list_packet_sockets())) listed->emplace(info.inode, std::move(info));
    }
    const auto info = listed->find(static_cast<uint32_t>(probe.stat.st_ino));
    if (info == listed->end()) return fail(Error::gone("find the packet socket", probe.subject));
    TRY_IN("look at " + probe.subject, look(probe, fd, info->second, *socket));
    TRY(look_at_rings(context, fd, probe.subject, socket->frames(), socket->rings));
    if (socket->protocol == 0 && socket->rings.receive_head != 0) {
      socket->rings.problem = {"it receives nothing any more, and only who receives can be led to where it was", false};
      socket->rings.content.reset(), socket->rings.receive_head = socket->rings.send_head = 0;
    }
    judge(context, probe, fd, *socket);
    return model::KindState{std::move(socket)};
  }

  // ---- images

  Status encode(const model::Application&, const model::OpenDescription& description,
                image::FileRecords& records) const override {
    const auto& socket = *description.state.as<PacketSocket>();
    image::FileRecord record;
    record.set_type(PACKETSK), record.set_id(description.id.value);
    auto& entry = *record.mutable_psk();
    entry.set_id(description.id.value), entry.set_flags(description.flags);
    entry.set_type(static_cast<uint32_t>(socket.type)), entry.set_protocol(htons(socket.protocol));
    entry.set_ifindex(static_cast<uint32_t>(socket.device.index));
    if (!socket.device.name.empty()) entry.set_ifname(socket.device.name);
    encode_owner(description.owner, *entry.mutable_fown());
    encode_socket_options(socket.options, *entry.mutable_opts());
    entry.set_version(socket.version), entry.set_reserve(socket.reserve), entry.set_timestamp(socket.timestamp);
    entry.set_copy_thresh(socket.copy_threshold), entry.set_aux_data(socket.auxiliary_data);
    entry.set_orig_dev(socket.original_device), entry.set_vnet_hdr(socket.network_header), entry.set_loss(socket.loss);
    for (const auto& membership : socket.memberships) {
      auto& one = *entry.add_mclist();
      one.set_index(static_cast<uint32_t>(membership.device.index)), one.set_type(membership.type);
      one.set_addr(membership.address.data(), membership.address.size());
      if (!membership.device.name.empty()) one.set_ifname(membership.device.name);
    }
    if (socket.fanout) entry.set_fanout(*socket.fanout);
    TRY(encode_rings(socket.rings, description.id.value, entry, records));
    records.files.push_back(std::move(record));
    socket_more_entry more;
    more.set_id(description.id.value);
    if (socket.owner) more.set_uid(socket.owner->uid), more.set_gid(socket.owner->gid);
    for (const auto& [name, value] : socket.values) {
      auto& option = *more.add_options();
      option.set_level(sol_packet), option.set_name(static_cast<uint32_t>(name)), option.set_value(value);
    }
    return add_socket_more(more, records);
  }

  bool decodes(const image::FileRecords&, const image::FileRecord& record) const override {
    return record.type() == PACKETSK;
  }

  Result<model::OpenDescription> decode(const image::FileRecords& records, const image::FileRecord& record,
                                        model::Application&) const override {
    if (!record.has_psk()) return bad_entry(kind(), record, "type", "there is no record of that kind in it");
    const auto& entry = record.psk();
    auto socket = std::make_shared<PacketSocket>();
    TRY(decode_numbers(record, *socket));
    TRY(decode_memberships(record, *socket));
    socket->rings = TRY(decode_rings(kind(), records, record));
    socket->options =
        TRY(decode_socket_options(entry.opts(), fmt::format("files.img, file {}, field psk.opts", record.id())));
    TRY(decode_more(record, TRY(socket_more(records, record.id())), *socket));
    model::OpenDescription description;
    description.id = ObjectId{record.id()}, description.flags = entry.flags();
    description.owner = decode_owner(entry.fown());
    description.state = {std::move(socket)};
    description.starts_last = starts_last(description.state);
    return description;
  }

  Status finish_decode(model::Application& application) const override {
    for (const auto& [id, space] : application.address_spaces) {
      for (const auto& mapping : space.mappings) {
        const auto file = application.descriptions.find(mapping.file);
        if (file == application.descriptions.end()) continue;
        const auto* socket = file->second.state.as<PacketSocket>();
        if (socket == nullptr || is_of(mapping.range, mapping.offset, *socket)) continue;
        return fail(
            Error::invalid("decode packet socket",
                           fmt::format("what is mapped at {:#x} is not the rings of file {}, which have {} bytes",
                                       mapping.range.begin, mapping.file, socket->rings.size()),
                           fmt::format("mm of address space {}, field shmid", id)));
      }
    }
    return {};
  }

  // ---- restore

  void validate(const model::Application&, const model::OpenDescription& description,
                Diagnostics& diagnostics) const override {
    const auto& socket = *description.state.as<PacketSocket>();
    expect_device(socket, socket.device, diagnostics);
    for (const auto& membership : socket.memberships) expect_device(socket, membership.device, diagnostics);
    if (auto problem = problem_of_leading(socket.rings); !problem.empty())
      diagnostics.refuse(socket.describe(), std::move(problem), "bring it up (ip link set lo up)");
  }

  bool can_be_inherited(const model::OpenDescription&) const override { return true; }
  bool starts_last(const model::KindState& state) const override { return state.as<PacketSocket>()->is_bound(); }

  Status make(const model::Application&, std::span<const plan::Placement> placements, plan::Sink& sink) const override {
    for (const auto& placement : placements) make(placement, sink);
    return {};
  }

  void start(const model::Application&, const model::OpenDescription& description, int fd,
             plan::Sink& sink) const override {
    const auto& socket = *description.state.as<PacketSocket>();
    plan::Perform perform{"bind the " + socket.describe(), "", {}, {}, {}};
    add_bind(socket, fd, perform.calls);
    if (has_filter_of_ours(socket)) add_late_options(socket, fd, perform.calls);
    if (socket.fanout)
      perform.calls.push_back(
          call(SYS_setsockopt, fd, sol_packet, PACKET_FANOUT, plan::struct_in(*socket.fanout), sizeof(uint32_t)));
    perform.starts.push_back({fd, description.id});
    sink.add(std::move(perform));
  }

  /// Whether a mapping is one of the socket's rings.
  static bool is_of(AddressRange range, uint64_t offset, const PacketSocket& socket) {
    return offset == 0 && range.size() == socket.rings.size();
  }

 private:
  static Status look(const DescriptorProbe& probe, int fd, const kernel::PacketSocketInfo& info, PacketSocket& socket) {
    socket.type = TRY(kernel::socket_option<int>(fd, SOL_SOCKET, SO_TYPE, "SO_TYPE"));
    socket.protocol = info.protocol, socket.device = device_of(info.device);
    socket.version = info.version, socket.reserve = info.reserve, socket.timestamp = info.timestamp;
    socket.copy_threshold = info.copy_threshold, socket.auxiliary_data = info.auxiliary_data;
    socket.original_device = info.original_device, socket.network_header = info.network_header;
    socket.loss = info.loss, socket.rings.receive = info.receive_ring, socket.rings.send = info.send_ring;
    for (const auto& one : info.memberships) {
      const Membership membership{device_of(one.device), one.type, one.address};
      socket.memberships.insert(socket.memberships.end(), one.count, membership);
    }
    socket.owner = {probe.stat.st_uid, probe.stat.st_gid};
    socket.options = TRY(capture_socket_options(fd, probe.subject));
    if (socket.type == legacy_type) return {};  // has no options of its own
    if (const auto fanout = TRY(kernel::socket_option<uint32_t>(fd, sol_packet, PACKET_FANOUT, "PACKET_FANOUT")))
      socket.fanout = fanout;
    for (const int name : other_options) {
      uint32_t value = 0;
      socklen_t size = sizeof value;
      // What the kernel does not have cannot have been set.
      if (getsockopt(fd, sol_packet, name, &value, &size) == 0 && value != 0) socket.values[name] = value;
    }
    return {};
  }

  static void judge(CaptureContext& context, const DescriptorProbe& probe, int fd, const PacketSocket& socket) {
    if (socket.device.index < 0)
      context.diagnostics.refuse(probe.subject, "it is bound to a device that does not exist any more",
                                 "let the program close it");
    if (socket.fanout && has_program(*socket.fanout))
      context.diagnostics.refuse(probe.subject,
                                 "a BPF program chooses who gets a packet (PACKET_FANOUT_DATA), and the kernel tells "
                                 "nobody which",
                                 "use another way of PACKET_FANOUT");
    pollfd asked{fd, POLLIN, 0};
    if (!socket.rings.receive && poll(&asked, 1, 0) > 0 && (asked.revents & POLLIN) != 0)
      context.diagnostics.warn(probe.subject, "packets that wait to be received are lost",
                               "whoever uses such sockets has to expect that");
  }

  Status decode_numbers(const image::FileRecord& record, PacketSocket& socket) const {
    const auto& entry = record.psk();
    const auto reject = [&](std::string_view field, uint32_t value) {
      return bad_entry(kind(), record, fmt::format("psk.{}", field), fmt::format("{} cannot be", value));
    };
    if (entry.type() != SOCK_RAW && entry.type() != SOCK_DGRAM && entry.type() != legacy_type)
      return reject("type", entry.type());
    if (entry.protocol() > UINT16_MAX) return reject("protocol", entry.protocol());
    if (entry.ifindex() > INT_MAX) return reject("ifindex", entry.ifindex());
    if (entry.ifname().size() >= IFNAMSIZ)
      return bad_entry(kind(), record, "psk.ifname", "no device has so long a name");
    if (entry.type() == legacy_type && entry.ifindex() != 0 && entry.ifname().empty())
      return bad_entry(kind(), record, "psk.ifname", "sockets of type SOCK_PACKET are bound by name");
    if (entry.version() > TPACKET_V3) return reject("version", entry.version());
    if (entry.reserve() > INT_MAX) return reject("reserve", entry.reserve());
    if (entry.has_fanout() && has_program(entry.fanout())) return reject("fanout", entry.fanout());
    socket.type = static_cast<int>(entry.type()), socket.protocol = ntohs(static_cast<uint16_t>(entry.protocol()));
    socket.device = {static_cast<int>(entry.ifindex()), entry.ifname()};
    socket.version = entry.version(), socket.reserve = entry.reserve(), socket.timestamp = entry.timestamp();
    socket.copy_threshold = entry.copy_thresh(), socket.auxiliary_data = entry.aux_data();
    socket.original_device = entry.orig_dev(), socket.network_header = entry.vnet_hdr(), socket.loss = entry.loss();
    if (entry.has_fanout()) socket.fanout = entry.fanout();
    return {};
  }

  Status decode_memberships(const image::FileRecord& record, PacketSocket& socket) const {
    for (const auto& one : record.psk().mclist()) {
      if (one.index() == 0 || one.index() > INT_MAX)
        return bad_entry(kind(), record, "psk.mclist.index", fmt::format("{} is no device", one.index()));
      if (one.type() > PACKET_MR_UNICAST)
        return bad_entry(kind(), record, "psk.mclist.type", fmt::format("{} is unknown", one.type()));
      if (one.addr().size() > longest_address)
        return bad_entry(kind(), record, "psk.mclist.addr", "no address is so long");
      if (one.ifname().size() >= IFNAMSIZ)
        return bad_entry(kind(), record, "psk.mclist.ifname", "no device has so long a name");
      socket.memberships.push_back(
          {{static_cast<int>(one.index()), one.ifname()}, one.type(), Bytes(one.addr().begin(), one.addr().end())});
    }
    return {};
  }

  Status decode_more(const image::FileRecord& record, const socket_more_entry& more, PacketSocket& socket) const {
    if (more.has_uid() && more.has_gid()) socket.owner = {more.uid(), more.gid()};
    for (const auto& option : more.options()) {
      const int name = static_cast<int>(option.name());
      if (option.level() != sol_packet || std::ranges::find(other_options, name) == std::end(other_options))
        return bad_entry(kind(), record, "psk.options", fmt::format("option {} does not belong there", option.name()));
      // struct virtio_net_hdr, and struct virtio_net_hdr_mrg_rxbuf
      if (name == vnet_header_size_option && option.value() != shortest_vnet_header && option.value() != 12)
        return bad_entry(kind(), record, "psk.options", fmt::format("no such header has {} bytes", option.value()));
      socket.values[name] = option.value();
    }
    return {};
  }

  /// The number is what counts, and another device may have it here. CRIU saves no names.
  static void expect_device(const PacketSocket& socket, const Device& device, Diagnostics& diagnostics) {
    if (device.index == 0) return;
    const auto here = device_of(device.index).name;
    if (device.name.empty() ? !here.empty() : here == device.name) return;
    const auto wanted = device.name.empty() ? "" : fmt::format(" '{}'", device.name);
    diagnostics.refuse(socket.describe(),
                       here.empty() ? fmt::format("the device{} with number {} does not exist", wanted, device.index)
                                    : fmt::format("device {} is '{}' instead of{}", device.index, here, wanted),
                       "make the device with that number (ip link add … index NUMBER)");
  }

  static void make(const plan::Placement& placement, plan::Sink& sink) {
    const auto& socket = *placement.description->state.as<PacketSocket>();
    const bool is_legacy = socket.type == legacy_type;
    const int fd = placement.fd, content = placement.scratch;
    if (socket.rings.is_led()) add_ring_content(socket.rings, content, sink);
    // Without a protocol nothing is received until it is bound, and its filter is there by then.
    plan::Perform perform{socket.describe(), "", {"CAP_NET_RAW"}, {}, {}};
    perform.calls.push_back(call(SYS_socket, AF_PACKET, socket.type, is_legacy ? htons(socket.protocol) : 0));
    place(placement, perform);
    auto& calls = perform.calls;
    if (socket.owner) calls.push_back(call(SYS_fchown, fd, socket.owner->uid, socket.owner->gid));
    if (!is_legacy) add_options(socket, fd, calls);
    add_rings(socket.rings, socket.frames(), fd, content, calls);
    if (!is_legacy) set(PACKET_COPY_THRESH, socket.copy_threshold, fd, calls);
    if (!has_filter_of_ours(socket)) add_socket_options(socket.options, fd, calls);
    for (const auto& membership : std::views::reverse(socket.memberships))  // the kernel lists the latest first
      add_membership(membership, fd, calls);
    if (is_legacy) add_legacy_bind(socket, fd, calls);
    sink.add(std::move(perform));
    if (socket.rings.is_led()) sink.add(plan::Close{content});
  }

  static bool has_filter_of_ours(const PacketSocket& socket) {
    return socket.rings.is_led() && socket.rings.receive_head != 0;
  }

  /// Our filter gives way to its own when it is bound as it was, or a packet would come in between.
  static void add_late_options(const PacketSocket& socket, int fd, plan::Calls& calls) {
    add_socket_options(socket.options, fd, calls);
    if (socket.options.filter.empty()) calls.push_back(set_option(fd, SO_DETACH_FILTER, 0));
  }

  static void set(int name, uint32_t value, int fd, plan::Calls& calls) {
    if (value != 0) calls.push_back(call(SYS_setsockopt, fd, sol_packet, name, plan::struct_in(value), sizeof value));
  }

  /// Most may only be set as long as there is no ring. What is too large for a frame is also queued if it is over
  /// PACKET_COPY_THRESH: that comes when no more packets of ours do.
  static void add_options(const PacketSocket& socket, int fd, plan::Calls& calls) {
    const std::pair<int, uint32_t> options[] = {{PACKET_VERSION, socket.version},
                                                {PACKET_RESERVE, socket.reserve},
                                                {PACKET_TIMESTAMP, socket.timestamp},
                                                {PACKET_AUXDATA, socket.auxiliary_data},
                                                {PACKET_ORIGDEV, socket.original_device},
                                                {PACKET_VNET_HDR, socket.network_header},
                                                {PACKET_LOSS, socket.loss}};
    for (const auto& [name, value] : options) set(name, value, fd, calls);
    for (const auto& [name, value] : socket.values) set(name, value, fd, calls);
  }

  static void add_membership(const Membership& membership, int fd, plan::Calls& calls) {
    struct {
      int device;
      uint16_t type, length;
      uint8_t address[longest_address];
    } request{};
    request.device = membership.device.index, request.type = static_cast<uint16_t>(membership.type);
    request.length = static_cast<uint16_t>(membership.address.size());
    std::ranges::copy(membership.address, request.address);
    calls.push_back(
        call(SYS_setsockopt, fd, sol_packet, PACKET_ADD_MEMBERSHIP, plan::struct_in(request), sizeof request));
  }

  static void add_bind(const PacketSocket& socket, int fd, plan::Calls& calls) {
    if (socket.protocol == 0 && socket.device.index == 0) return;
    sockaddr_ll address{};
    address.sll_family = AF_PACKET, address.sll_protocol = htons(socket.protocol);
    address.sll_ifindex = socket.device.index;
    calls.push_back(call(SYS_bind, fd, plan::struct_in(address), sizeof address));
  }

  /// By name, and the name is cut off (net/packet/af_packet.c, packet_bind_spkt).
  static void add_legacy_bind(const PacketSocket& socket, int fd, plan::Calls& calls) {
    if (socket.device.index == 0) return;
    sockaddr address{};
    address.sa_family = AF_PACKET;
    socket.device.name.copy(address.sa_data, sizeof address.sa_data - 1);
    calls.push_back(call(SYS_bind, fd, plan::struct_in(address), sizeof address));
  }
};

}  // namespace

ObjectId find_packet_rings(CaptureContext& context, const kernel::MapsEntry& vma, const std::string& subject) {
  constexpr auto advice = "let the program unmap them before the dump";
  const dev_t device = makedev(vma.device_major, vma.device_minor);
  for (const auto& [id, description] : context.application.descriptions) {
    const auto identity = context.identities.find(id);
    const auto* socket = description.state.as<PacketSocket>();
    if (socket == nullptr || identity == context.identities.end() || identity->second.inode != vma.inode ||
        identity->second.device != device)
      continue;
    if (!PacketSocketRoom::is_of(vma.range, vma.offset, *socket))
      context.diagnostics.refuse(subject, "a part of a packet socket's rings, which are only mapped as a whole",
                                 advice);
    else if (socket->rings.problem && socket->rings.problem->passes)
      context.diagnostics.refuse_for_now(subject, "rings of a packet socket: " + socket->rings.problem->what, advice);
    else if (socket->rings.problem)
      context.diagnostics.refuse(subject, "rings of a packet socket: " + socket->rings.problem->what, advice);
    return id;
  }
  context.diagnostics.refuse(subject, "the packet socket that these rings are of nobody has open", advice);
  return {};
}

const FileRoom& packet_socket_room() {
  static const PacketSocketRoom room;
  return room;
}

}  // namespace stasis::resource
