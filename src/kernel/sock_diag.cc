#include "kernel/sock_diag.h"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/packet_diag.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <functional>
#include <sstream>

#include "base/unique_fd.h"

namespace stasis::kernel {
namespace {

constexpr size_t alignment = 4;  // of netlink messages and attributes

template <typename T>
T plain(ByteView bytes) {
  T value{};
  std::memcpy(&value, bytes.data(), std::min(bytes.size(), sizeof value));
  return value;
}

/// Calls `use` for each attribute.
void each_attribute(ByteView bytes, const std::function<void(uint16_t type, ByteView value)>& use) {
  while (bytes.size() >= sizeof(nlattr)) {
    const auto head = plain<nlattr>(bytes);
    if (head.nla_len < sizeof head || head.nla_len > bytes.size()) return;
    use(head.nla_type & NLA_TYPE_MASK, bytes.subspan(sizeof head, head.nla_len - sizeof head));
    bytes = bytes.subspan(std::min<size_t>((head.nla_len + alignment - 1) / alignment * alignment, bytes.size()));
  }
}

/// Sends the request and calls `use` for each message of the answer.
template <typename Request>
Status dump(const Request& request, const std::function<void(ByteView payload)>& use) {
  const UniqueFd socket(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
  if (!socket.valid()) return fail_errno("socket", "NETLINK_SOCK_DIAG");
  struct {
    nlmsghdr head;
    Request request;
  } message{};
  message.head.nlmsg_len = sizeof message, message.head.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  message.head.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  message.request = request;
  if (send(socket.get(), &message, sizeof message, 0) < 0) return fail_errno("send", "NETLINK_SOCK_DIAG");
  Bytes buffer(1 << 17);
  for (;;) {
    const ssize_t received = recv(socket.get(), buffer.data(), buffer.size(), 0);
    if (received < 0 && errno == EINTR) continue;
    if (received <= 0) return fail_errno("recv", "NETLINK_SOCK_DIAG");
    ByteView rest(buffer.data(), static_cast<size_t>(received));
    while (rest.size() >= sizeof(nlmsghdr)) {
      const auto head = plain<nlmsghdr>(rest);
      if (head.nlmsg_len < sizeof head || head.nlmsg_len > rest.size()) break;
      const ByteView payload = rest.subspan(sizeof head, head.nlmsg_len - sizeof head);
      if (head.nlmsg_type == NLMSG_DONE) return {};
      if (head.nlmsg_type == NLMSG_ERROR)
        return fail(Error::system("list sockets", -plain<nlmsgerr>(payload).error, "NETLINK_SOCK_DIAG"));
      use(payload);
      rest = rest.subspan(std::min<size_t>((head.nlmsg_len + alignment - 1) / alignment * alignment, rest.size()));
    }
  }
}

UnixSocketInfo unix_socket(ByteView payload) {
  UnixSocketInfo info;
  const auto message = plain<unix_diag_msg>(payload);
  info.inode = message.udiag_ino, info.type = message.udiag_type, info.state = message.udiag_state;
  each_attribute(payload.subspan(std::min(payload.size(), sizeof message)), [&](uint16_t type, ByteView value) {
    if (type == UNIX_DIAG_NAME) info.name.assign(value.begin(), value.end());
    if (type == UNIX_DIAG_PEER) info.peer = plain<uint32_t>(value);
    if (type == UNIX_DIAG_SHUTDOWN) info.shutdown = plain<uint8_t>(value);
    if (type == UNIX_DIAG_VFS) {
      const auto file = plain<unix_diag_vfs>(value);
      info.file_inode = file.udiag_vfs_ino, info.file_device = file.udiag_vfs_dev;
    }
    if (type == UNIX_DIAG_ICONS) {
      for (; value.size() >= sizeof(uint32_t); value = value.subspan(sizeof(uint32_t)))
        info.pending.push_back(plain<uint32_t>(value));
    }
    if (type == UNIX_DIAG_RQLEN) {
      const auto lengths = plain<unix_diag_rqlen>(value);
      info.receive_queue = lengths.udiag_rqueue;
      info.backlog = info.state == TCP_LISTEN ? lengths.udiag_wqueue : 0;
    }
  });
  return info;
}

std::vector<PacketSocketInfo::Membership> packet_memberships(ByteView value) {
  std::vector<PacketSocketInfo::Membership> memberships;
  for (; value.size() >= sizeof(packet_diag_mclist); value = value.subspan(sizeof(packet_diag_mclist))) {
    const auto one = plain<packet_diag_mclist>(value);
    const size_t length = std::min<size_t>(one.pdmc_alen, sizeof one.pdmc_addr);
    memberships.push_back({static_cast<int32_t>(one.pdmc_index), one.pdmc_count, one.pdmc_type,
                           Bytes(one.pdmc_addr, one.pdmc_addr + length)});
  }
  return memberships;
}

PacketSocketInfo::Ring packet_ring(ByteView value) {
  const auto ring = plain<packet_diag_ring>(value);
  return {ring.pdr_block_size, ring.pdr_block_nr,    ring.pdr_frame_size, ring.pdr_frame_nr,
          ring.pdr_retire_tmo, ring.pdr_sizeof_priv, ring.pdr_features};
}

PacketSocketInfo packet_socket(ByteView payload) {
  PacketSocketInfo info;
  const auto message = plain<packet_diag_msg>(payload);
  info.inode = message.pdiag_ino, info.protocol = message.pdiag_num;
  each_attribute(payload.subspan(std::min(payload.size(), sizeof message)), [&](uint16_t type, ByteView value) {
    if (type == PACKET_DIAG_MCLIST) info.memberships = packet_memberships(value);
    if (type == PACKET_DIAG_RX_RING) info.receive_ring = packet_ring(value);
    if (type == PACKET_DIAG_TX_RING) info.send_ring = packet_ring(value);
    if (type != PACKET_DIAG_INFO) return;
    const auto told = plain<packet_diag_info>(value);
    info.device = static_cast<int32_t>(told.pdi_index);
    info.version = told.pdi_version, info.reserve = told.pdi_reserve;
    info.copy_threshold = told.pdi_copy_thresh, info.timestamp = told.pdi_tstamp;
    info.auxiliary_data = (told.pdi_flags & PDI_AUXDATA) != 0,
    info.original_device = (told.pdi_flags & PDI_ORIGDEV) != 0;
    info.network_header = (told.pdi_flags & PDI_VNETHDR) != 0, info.loss = (told.pdi_flags & PDI_LOSS) != 0;
  });
  return info;
}

}  // namespace

Result<std::vector<PacketSocketInfo>> list_packet_sockets() {
  packet_diag_req request{};
  request.sdiag_family = AF_PACKET;
  request.pdiag_show = PACKET_SHOW_INFO | PACKET_SHOW_MCLIST | PACKET_SHOW_RING_CFG;
  std::vector<PacketSocketInfo> sockets;
  TRY(dump(request, [&](ByteView payload) { sockets.push_back(packet_socket(payload)); }));
  return sockets;
}

Result<std::map<uint32_t, Endpoint>> list_connecting(int family) {
  inet_diag_req_v2 request{};
  request.sdiag_family = static_cast<uint8_t>(family), request.sdiag_protocol = IPPROTO_TCP;
  request.idiag_states = 1u << TCP_SYN_SENT;
  std::map<uint32_t, Endpoint> found;
  TRY(dump(request, [&](ByteView payload) {
    const auto message = plain<inet_diag_msg>(payload);
    Endpoint remote{.family = family, .port = ntohs(message.id.idiag_dport)};
    std::memcpy(remote.address.data(), message.id.idiag_dst, remote.address_size());
    found.emplace(message.idiag_inode, remote);
  }));
  return found;
}

Result<std::map<uint32_t, Endpoint>> list_peers(const std::string& table, int family) {
  std::ifstream lines("/proc/net/" + table);
  std::map<uint32_t, Endpoint> found;
  std::string line;
  std::getline(lines, line);  // a heading
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::string number, local, address, state, queues, timer, retransmits;
    uint32_t uid = 0, timeout = 0, inode = 0;
    words >> number >> local >> address >> state >> queues >> timer >> retransmits >> uid >> timeout >> inode;
    Endpoint remote{.family = family};
    if (!words || state != "01" || address.size() < 2 * remote.address_size()) continue;
    for (size_t at = 0; at < remote.address_size(); at += sizeof(uint32_t)) {
      uint32_t word = 0;  // as it is in memory, so that its bytes are in the right order there
      std::from_chars(&address[2 * at], &address[2 * at] + 2 * sizeof word, word, 16);
      std::memcpy(&remote.address[at], &word, sizeof word);
    }
    found.emplace(inode, remote);
  }
  return found;
}

Result<std::vector<UnixSocketInfo>> list_unix_sockets() {
  unix_diag_req request{};
  request.sdiag_family = AF_UNIX;
  request.udiag_states = ~0u;
  request.udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN;
  std::vector<UnixSocketInfo> sockets;
  TRY(dump(request, [&](ByteView payload) { sockets.push_back(unix_socket(payload)); }));
  return sockets;
}

Result<Shutdowns> list_shutdowns(int family, int protocol) {
  inet_diag_req_v2 request{};
  request.sdiag_family = static_cast<uint8_t>(family), request.sdiag_protocol = static_cast<uint8_t>(protocol);
  request.idiag_states = ~0u;
  Shutdowns found;
  const auto listed = dump(request, [&](ByteView payload) {
    const auto message = plain<inet_diag_msg>(payload);
    each_attribute(payload.subspan(std::min(payload.size(), sizeof message)), [&](uint16_t type, ByteView value) {
      const auto shutdown = plain<uint8_t>(value);
      if (type == INET_DIAG_SHUTDOWN && shutdown != 0) found[message.idiag_inode] = shutdown;
    });
  });
  // A kernel without udp_diag, raw_diag …
  if (!listed && listed.error().errno_value() != ENOENT) return std::unexpected(listed.error());
  return found;
}

}  // namespace stasis::kernel
