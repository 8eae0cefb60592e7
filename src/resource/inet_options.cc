#include "resource/inet_options.h"

#include <fmt/format.h>
#include <linux/icmp.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <optional>

#include "base/unique_fd.h"

namespace stasis::resource {
namespace {

using plan::call;

// Newer than the C library's headers, or in headers that exclude the others.
constexpr int sol_ip = 0, sol_tcp = 6, sol_udp = 17, sol_ipv6 = 41, sol_icmpv6 = 58, sol_udplite = 136, sol_raw = 255;
constexpr int icmpv6_filter_option = 1;
constexpr int udplite_send_coverage = 10, udplite_receive_coverage = 11;
constexpr int ip_local_port_range = 51, ipv6_multicast_all = 29, tcp_rto_max_ms = 44, tcp_rto_min_us = 45,
              tcp_delack_max_us = 46, tcp_fastopen_key = 33;

struct Option {
  int level, name;
  bool of_connections = true;  ///< also tells of a TCP connection what the program has set
  bool always = false;         ///< CRIU saves it whatever its value
  bool of_streams = true;      ///< SOCK_STREAM has it
};
constexpr Option options[] = {
    {sol_ip, IP_TOS},
    {sol_ip, IP_TTL, true, true},
    {sol_ip, IP_HDRINCL},
    {sol_ip, IP_NODEFRAG},
    {sol_ip, IP_FREEBIND},
    {sol_ip, IP_TRANSPARENT},
    {sol_ip, IP_BIND_ADDRESS_NO_PORT},
    {sol_ip, ip_local_port_range},
    {sol_ip, IP_MTU_DISCOVER},
    {sol_ip, IP_MINTTL},
    {sol_ip, IP_PKTINFO},
    {sol_ip, IP_RECVERR},
    {sol_ip, IP_RECVERR_RFC4884},
    {sol_ip, IP_RECVOPTS},
    {sol_ip, IP_RETOPTS},
    {sol_ip, IP_RECVTTL},
    {sol_ip, IP_RECVTOS},
    {sol_ip, IP_PASSSEC},
    {sol_ip, IP_RECVORIGDSTADDR},
    {sol_ip, IP_RECVFRAGSIZE},
    {sol_ip, IP_CHECKSUM},
    {sol_ip, IP_ROUTER_ALERT},
    {sol_ip, IP_UNICAST_IF},
    {.level = sol_ip, .name = IP_MULTICAST_TTL, .of_streams = false},
    {.level = sol_ip, .name = IP_MULTICAST_LOOP, .of_streams = false},
    {.level = sol_ip, .name = IP_MULTICAST_ALL, .of_streams = false},
    {.level = sol_ip, .name = IP_MULTICAST_IF, .of_streams = false},
    {sol_ipv6, IPV6_HDRINCL},
    {sol_ipv6, IPV6_CHECKSUM},
    {sol_ipv6, IPV6_FREEBIND},
    {sol_ipv6, IPV6_TRANSPARENT},
    {sol_ipv6, IPV6_UNICAST_HOPS},
    {sol_ipv6, IPV6_MINHOPCOUNT},
    {sol_ipv6, IPV6_TCLASS},
    {sol_ipv6, IPV6_MTU_DISCOVER},
    {sol_ipv6, IPV6_DONTFRAG},
    {sol_ipv6, IPV6_AUTOFLOWLABEL},
    {sol_ipv6, IPV6_RECVERR},
    {sol_ipv6, IPV6_RECVERR_RFC4884},
    {sol_ipv6, IPV6_RECVPKTINFO},
    {sol_ipv6, IPV6_RECVHOPLIMIT},
    {sol_ipv6, IPV6_RECVTCLASS},
    {sol_ipv6, IPV6_RECVRTHDR},
    {sol_ipv6, IPV6_RECVHOPOPTS},
    {sol_ipv6, IPV6_RECVDSTOPTS},
    {sol_ipv6, IPV6_RECVPATHMTU},
    {sol_ipv6, IPV6_RECVORIGDSTADDR},
    {sol_ipv6, IPV6_RECVFRAGSIZE},
    {sol_ipv6, IPV6_FLOWINFO},
    {sol_ipv6, IPV6_FLOWINFO_SEND},
    {sol_ipv6, IPV6_ADDR_PREFERENCES},
    {sol_ipv6, IPV6_UNICAST_IF},
    {.level = sol_ipv6, .name = IPV6_MULTICAST_IF, .of_streams = false},
    {.level = sol_ipv6, .name = IPV6_MULTICAST_HOPS, .of_streams = false},
    {.level = sol_ipv6, .name = IPV6_MULTICAST_LOOP, .of_streams = false},
    {.level = sol_ipv6, .name = ipv6_multicast_all, .of_streams = false},
    {sol_tcp, TCP_NODELAY},
    {sol_tcp, TCP_CORK},
    {sol_tcp, TCP_KEEPIDLE, true, true},
    {sol_tcp, TCP_KEEPINTVL, true, true},
    {sol_tcp, TCP_KEEPCNT, true, true},
    {sol_tcp, TCP_MAXSEG, false},
    {sol_tcp, TCP_WINDOW_CLAMP, false},
    {sol_tcp, TCP_SYNCNT},
    {sol_tcp, TCP_LINGER2},
    {sol_tcp, TCP_DEFER_ACCEPT},
    {sol_tcp, TCP_USER_TIMEOUT},
    {sol_tcp, TCP_NOTSENT_LOWAT},
    {sol_tcp, TCP_THIN_LINEAR_TIMEOUTS},
    {sol_tcp, TCP_SAVE_SYN, false},
    {sol_tcp, TCP_FASTOPEN, false},
    {sol_tcp, TCP_FASTOPEN_CONNECT, false},
    {sol_tcp, TCP_FASTOPEN_NO_COOKIE},
    {sol_tcp, TCP_INQ},
    {sol_tcp, TCP_TX_DELAY},
    {sol_tcp, tcp_rto_max_ms},
    {sol_tcp, tcp_rto_min_us},
    {sol_tcp, tcp_delack_max_us},
    {sol_udp, UDP_CORK},
    {sol_udp, UDP_ENCAP},
    {sol_udp, UDP_NO_CHECK6_TX},
    {sol_udp, UDP_NO_CHECK6_RX},
    {sol_udp, UDP_SEGMENT},
    {sol_udp, UDP_GRO},
    {sol_udplite, udplite_send_coverage},
    {sol_udplite, udplite_receive_coverage},
};

const Option* find_option(int level, int name) {
  const auto* found =
      std::ranges::find_if(options, [&](const Option& option) { return option.level == level && option.name == name; });
  return found == std::end(options) ? nullptr : found;
}

/// Options of any length: none on a new socket.
struct LongOption {
  int level, name;
  size_t longest;
};
constexpr LongOption long_options[] = {
    {sol_ip, IP_OPTIONS, 40},     {sol_ipv6, IPV6_HOPOPTS, 2048}, {sol_ipv6, IPV6_RTHDRDSTOPTS, 2048},
    {sol_ipv6, IPV6_RTHDR, 2048}, {sol_ipv6, IPV6_DSTOPTS, 2048}, {sol_tcp, tcp_fastopen_key, 32},
};

const LongOption* find_long_option(int level, int name) {
  const auto* found = std::ranges::find_if(
      long_options, [&](const LongOption& option) { return option.level == level && option.name == name; });
  return found == std::end(long_options) ? nullptr : found;
}

/// Whether sockets of the kind have options of the level. IPv6 sockets have those of SOL_IP, too, for what they send to
/// and receive from IPv4 (dual stack), but raw ones and those of ping (net/ipv6/ipv6_sockglue.c, ipv6_setsockopt).
bool has_level(const InetKind& kind, int level) {
  const bool is_raw = kind.type == SOCK_RAW;
  switch (level) {
    case sol_ip:
      return kind.family == AF_INET || (kind.family == AF_INET6 && !is_raw && kind.protocol != IPPROTO_ICMPV6);
    case sol_ipv6:
      return kind.family == AF_INET6;
    case sol_tcp:
      return !is_raw && kind.protocol == IPPROTO_TCP;
    case sol_udp:
      return !is_raw && (kind.protocol == IPPROTO_UDP || kind.protocol == IPPROTO_UDPLITE);
    case sol_udplite:
      return !is_raw && kind.protocol == IPPROTO_UDPLITE;
    default:
      return false;
  }
}

bool has_option(const InetKind& kind, const Option& option) {
  return has_level(kind, option.level) && (option.of_streams || kind.type != SOCK_STREAM);
}

/// Where the filter of ICMP messages is; nothing: such sockets have none.
std::optional<std::pair<int, int>> filter_option(const InetKind& kind) {
  if (kind.type != SOCK_RAW) return std::nullopt;
  if (kind.family == AF_INET && kind.protocol == IPPROTO_ICMP) return std::pair{sol_raw, ICMP_FILTER};
  if (kind.family == AF_INET6 && kind.protocol == IPPROTO_ICMPV6) return std::pair{sol_icmpv6, icmpv6_filter_option};
  return std::nullopt;
}
constexpr size_t filter_size(int family) { return family == AF_INET6 ? 32 : 4; }

InetOptions read_all(int fd, const InetKind& kind, bool connected) {
  InetOptions found;
  for (const auto& option : options) {
    if (!has_option(kind, option) || (connected && !option.of_connections)) continue;
    uint32_t value = 0;
    socklen_t size = sizeof value;
    // What the kernel does not have cannot have been set.
    if (getsockopt(fd, option.level, option.name, &value, &size) == 0 && size == sizeof value)
      found.values[{option.level, option.name}] = value;
  }
  for (const auto& option : long_options) {
    if (!has_level(kind, option.level)) continue;
    Bytes value(option.longest);
    socklen_t size = static_cast<socklen_t>(value.size());
    if (getsockopt(fd, option.level, option.name, value.data(), &size) != 0 || size == 0) continue;
    value.resize(size);
    found.long_values[{option.level, option.name}] = std::move(value);
  }
  if (has_level(kind, sol_tcp)) {
    char name[64] = {};
    socklen_t size = sizeof name - 1;
    if (getsockopt(fd, sol_tcp, TCP_CONGESTION, name, &size) == 0) found.congestion = name;
  }
  if (const auto filter = filter_option(kind)) {
    found.icmp_filter.resize(filter_size(kind.family));
    socklen_t size = static_cast<socklen_t>(found.icmp_filter.size());
    if (getsockopt(fd, filter->first, filter->second, found.icmp_filter.data(), &size) != 0) found.icmp_filter.clear();
  }
  return found;
}

/// CRIU's own fields: which option each stands for.
struct Field {
  int family;  ///< 0: both
  int level, name;
  void (*write)(inet_sk_entry&, uint32_t);
  std::optional<uint32_t> (*read)(const inet_sk_entry&);
};
#define STASIS_FIELD(part, field)                                                                         \
  [](inet_sk_entry& entry, uint32_t value) { entry.mutable_##part()->set_##field(value); },               \
      [](const inet_sk_entry& entry) {                                                                    \
        return entry.part().has_##field() ? std::optional<uint32_t>(entry.part().field()) : std::nullopt; \
      }
#define STASIS_RAW_FIELD(field)                                                                             \
  [](inet_sk_entry& entry, uint32_t value) { entry.mutable_ip_opts()->mutable_raw()->set_##field(value); }, \
      [](const inet_sk_entry& entry) {                                                                      \
        const auto& raw = entry.ip_opts().raw();                                                            \
        return raw.has_##field() ? std::optional<uint32_t>(raw.field()) : std::nullopt;                     \
      }
constexpr Field fields[] = {
    {AF_INET, sol_ip, IP_FREEBIND, STASIS_FIELD(ip_opts, freebind)},
    {AF_INET6, sol_ipv6, IPV6_FREEBIND, STASIS_FIELD(ip_opts, freebind)},
    {AF_INET, sol_ip, IP_PKTINFO, STASIS_FIELD(ip_opts, pktinfo)},
    {AF_INET6, sol_ipv6, IPV6_RECVPKTINFO, STASIS_FIELD(ip_opts, pktinfo)},
    {AF_INET, sol_ip, IP_TOS, STASIS_FIELD(ip_opts, tos)},
    {AF_INET, sol_ip, IP_TTL, STASIS_FIELD(ip_opts, ttl)},
    {AF_INET, sol_ip, IP_HDRINCL, STASIS_RAW_FIELD(hdrincl)},
    {AF_INET6, sol_ipv6, IPV6_HDRINCL, STASIS_RAW_FIELD(hdrincl)},
    {AF_INET, sol_ip, IP_NODEFRAG, STASIS_RAW_FIELD(nodefrag)},
    {0, sol_tcp, TCP_NODELAY, STASIS_FIELD(tcp_opts, nodelay)},
    {0, sol_tcp, TCP_CORK, STASIS_FIELD(tcp_opts, cork)},
    {0, sol_tcp, TCP_KEEPCNT, STASIS_FIELD(tcp_opts, keepcnt)},
    {0, sol_tcp, TCP_KEEPIDLE, STASIS_FIELD(tcp_opts, keepidle)},
    {0, sol_tcp, TCP_KEEPINTVL, STASIS_FIELD(tcp_opts, keepintvl)},
};
#undef STASIS_FIELD
#undef STASIS_RAW_FIELD

const Field* find_field(const InetKind& kind, int level, int name) {
  const auto* found = std::ranges::find_if(fields, [&](const Field& field) {
    return field.level == level && field.name == name && (field.family == 0 || field.family == kind.family);
  });
  return found == std::end(fields) ? nullptr : found;
}

}  // namespace

Result<const InetOptions*> InetOptionReader::of_new(const InetKind& kind) {
  auto found = of_new_.find(kind);
  if (found == of_new_.end()) {
    const UniqueFd fresh(socket(kind.family, kind.type | SOCK_CLOEXEC, kind.protocol));
    // Ping sockets need a group that sysctl net.ipv4.ping_group_range allows; then every value is saved.
    found = of_new_.emplace(kind, fresh.valid() ? read_all(fresh.get(), kind, false) : InetOptions{}).first;
  }
  return &found->second;
}

Result<InetOptions> InetOptionReader::read(int fd, const InetKind& kind, bool connected) {
  auto found = read_all(fd, kind, connected);
  const auto& standard = *TRY(of_new(kind));
  std::erase_if(found.values, [&](const auto& entry) {
    const auto& [key, value] = entry;
    const auto usual = standard.values.find(key);
    const bool always =
        find_option(key.first, key.second)->always && find_field(kind, key.first, key.second) != nullptr;
    return usual != standard.values.end() && usual->second == value && !always;
  });
  if (found.congestion == standard.congestion) found.congestion.clear();
  if (std::ranges::all_of(found.icmp_filter, [](uint8_t byte) { return byte == 0; })) found.icmp_filter.clear();
  return found;
}

void encode_inet_options(const InetOptions& options, const InetKind& kind, inet_sk_entry& entry,
                         socket_more_entry& others) {
  entry.mutable_ip_opts(), entry.mutable_tcp_opts();
  for (const auto& [key, value] : options.values) {
    if (const auto* field = find_field(kind, key.first, key.second)) {
      field->write(entry, value);
      continue;
    }
    auto& more = *others.add_options();
    more.set_level(static_cast<uint32_t>(key.first)), more.set_name(static_cast<uint32_t>(key.second));
    more.set_value(value);
  }
  for (const auto& [key, value] : options.long_values) {
    auto& more = *others.add_long_options();
    more.set_level(static_cast<uint32_t>(key.first)), more.set_name(static_cast<uint32_t>(key.second));
    more.set_value(value.data(), value.size());
  }
  if (options.multicast_device != 0) others.set_multicast_device(options.multicast_device);
  if (!options.congestion.empty()) others.set_congestion(options.congestion);
  for (size_t at = 0; at + 4 <= options.icmp_filter.size(); at += 4) {
    uint32_t word = 0;
    std::memcpy(&word, &options.icmp_filter[at], sizeof word);
    entry.mutable_ip_opts()->mutable_raw()->add_icmpv_filter(word);
  }
}

Result<InetOptions> decode_inet_options(const inet_sk_entry& entry, const socket_more_entry& others,
                                        const InetKind& kind, const std::string& where) {
  const auto reject = [&](std::string_view field, std::string cause) {
    return fail(
        Error::invalid("decode socket options", std::move(cause), fmt::format("{}, field isk.{}", where, field)));
  };
  InetOptions decoded;
  for (const auto& field : fields) {
    const bool applies = (field.family == 0 || field.family == kind.family) && has_level(kind, field.level);
    if (const auto value = applies ? field.read(entry) : std::nullopt)
      decoded.values[{field.level, field.name}] = *value;
  }
  for (const auto& more : others.options()) {
    const int level = static_cast<int>(more.level()), name = static_cast<int>(more.name());
    const auto* option = find_option(level, name);
    if (option == nullptr || !has_option(kind, *option) || find_field(kind, level, name) != nullptr)
      return reject("options", fmt::format("option {} of level {} does not belong there", more.name(), more.level()));
    decoded.values[{level, name}] = more.value();
  }
  for (const auto& more : others.long_options()) {
    const int level = static_cast<int>(more.level()), name = static_cast<int>(more.name());
    const auto* option = find_long_option(level, name);
    if (option == nullptr || !has_level(kind, level) || more.value().empty() || more.value().size() > option->longest)
      return reject("long_options",
                    fmt::format("option {} of level {} does not belong there", more.name(), more.level()));
    decoded.long_values[{level, name}].assign(more.value().begin(), more.value().end());
  }
  decoded.multicast_device = others.multicast_device();
  if (decoded.multicast_device > INT32_MAX ||
      (decoded.multicast_device != 0 && !has_option(kind, *find_option(sol_ip, IP_MULTICAST_IF))))
    return reject("multicast_device", fmt::format("{} is no device of such a socket", decoded.multicast_device));
  decoded.congestion = others.congestion();
  constexpr size_t longest_congestion = 15;  // TCP_CA_NAME_MAX
  if (decoded.congestion.size() > longest_congestion) return reject("congestion", "no algorithm has so long a name");
  const auto& raw = entry.ip_opts().raw();
  if (raw.icmpv_filter_size() == 0) return decoded;
  if (!filter_option(kind)) return reject("ip_opts.raw.icmpv_filter", "such a socket has no filter");
  for (const uint32_t word : raw.icmpv_filter()) {
    const Bytes bytes = bytes_of(word);
    decoded.icmp_filter.insert(decoded.icmp_filter.end(), bytes.begin(), bytes.end());
  }
  if (decoded.icmp_filter.size() != filter_size(kind.family))
    return reject("ip_opts.raw.icmpv_filter", fmt::format("{} words are no filter", raw.icmpv_filter_size()));
  return decoded;
}

void add_inet_options(const InetOptions& options, const InetKind& kind, int fd, plan::Calls& calls) {
  for (const auto& [key, value] : options.values)
    calls.push_back(call(SYS_setsockopt, fd, key.first, key.second, plan::struct_in(value), sizeof value));
  if (options.multicast_device != 0) {
    const auto address = options.values.find({sol_ip, IP_MULTICAST_IF});
    const ip_mreqn both{
        {}, {address == options.values.end() ? 0 : address->second}, static_cast<int>(options.multicast_device)};
    calls.push_back(call(SYS_setsockopt, fd, sol_ip, IP_MULTICAST_IF, plan::struct_in(both), sizeof both));
  }
  for (const auto& [key, value] : options.long_values)
    calls.push_back(call(SYS_setsockopt, fd, key.first, key.second, plan::In{value}, value.size()));
  if (!options.congestion.empty()) {
    calls.push_back(
        call(SYS_setsockopt, fd, sol_tcp, TCP_CONGESTION, plan::text(options.congestion), options.congestion.size()));
  }
  if (const auto filter = filter_option(kind); filter && !options.icmp_filter.empty()) {
    calls.push_back(call(SYS_setsockopt, fd, filter->first, filter->second, plan::In{options.icmp_filter},
                         options.icmp_filter.size()));
  }
}

}  // namespace stasis::resource
