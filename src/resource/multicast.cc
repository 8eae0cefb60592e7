#include "resource/multicast.h"

#include <fmt/format.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#include "kernel/inet.h"
#include "kernel/kernel_memory.h"

namespace stasis::resource {
namespace {

using Address = std::array<uint8_t, 16>;

constexpr size_t address_size(int family) { return family == AF_INET6 ? 16 : 4; }
constexpr int level_of(int family) { return family == AF_INET6 ? IPPROTO_IPV6 : IPPROTO_IP; }
constexpr size_t most_sources = 1024;  // more than sysctl net.ipv4.igmp_max_msf allows

sockaddr_storage name_of(const Address& address, int family) {
  const Bytes bytes = kernel::socket_address({.family = family, .address = address});
  sockaddr_storage storage{};
  std::memcpy(&storage, bytes.data(), bytes.size());
  return storage;
}

/// struct group_filter with its sources.
Bytes filter_of(const Membership& membership, int family, size_t room) {
  Bytes bytes(GROUP_FILTER_SIZE(room));
  group_filter head{};
  head.gf_interface = membership.device_index, head.gf_group = name_of(membership.group, family);
  head.gf_fmode = membership.only_from ? MCAST_INCLUDE : MCAST_EXCLUDE;
  head.gf_numsrc = static_cast<uint32_t>(room);
  std::memcpy(bytes.data(), &head, offsetof(group_filter, gf_slist));
  for (size_t index = 0; index < membership.sources.size(); ++index) {
    const auto source = name_of(membership.sources[index], family);
    std::memcpy(&bytes[offsetof(group_filter, gf_slist) + index * sizeof source], &source, sizeof source);
  }
  return bytes;
}

/// Hexadecimal digits, as many as the address has.
bool parse_hex(std::string_view text, std::span<uint8_t> into) {
  if (text.size() != 2 * into.size()) return false;
  for (size_t index = 0; index < into.size(); ++index) {
    const char* first = text.data() + 2 * index;
    if (std::from_chars(first, first + 2, into[index], 16).ptr != first + 2) return false;
  }
  return true;
}

Address address_in(const std::string& bytes) {
  Address address{};
  std::memcpy(address.data(), bytes.data(), std::min(bytes.size(), address.size()));
  return address;
}
std::string bytes_in(const Address& address, int family) {
  return {reinterpret_cast<const char*>(address.data()), address_size(family)};
}

}  // namespace

/// Documentation/networking/… has no word on these files: net/ipv4/igmp.c, igmp_mc_seq_show; net/ipv6/mcast.c,
/// igmp6_mc_seq_show. Where IPv6 is not there the second is missing.
Status MembershipReader::list() {
  if (std::exchange(listed_, true)) return {};
  std::ifstream four("/proc/net/igmp"), six("/proc/net/igmp6");
  std::string line, device;
  uint32_t index = 0;
  std::getline(four, line);  // a heading
  while (std::getline(four, line)) {
    std::istringstream words(line);
    std::string group;
    if (!line.starts_with('\t')) {
      words >> index >> device;  // "1 lo : 1 V3"
      continue;
    }
    words >> group;
    Known known{AF_INET, index, device, {}};
    // The number that the address is in the machine's memory.
    if (!parse_hex(group, std::span(known.group).first(4))) continue;
    std::reverse(known.group.begin(), known.group.begin() + 4);
    known_.push_back(std::move(known));
  }
  while (std::getline(six, line)) {
    std::istringstream words(line);
    Known known{AF_INET6, 0, {}, {}};
    std::string group;
    if (words >> known.device_index >> known.device >> group && parse_hex(group, known.group))
      known_.push_back(std::move(known));
  }
  return {};
}

Result<std::vector<Membership>> MembershipReader::read(int fd, int family) {
  TRY(list());
  std::vector<Membership> found;
  for (const auto& known : known_) {
    if (known.family != family) continue;
    Membership membership{.group = known.group, .device = known.device, .device_index = known.device_index};
    Bytes filter = filter_of(membership, family, most_sources);
    auto size = static_cast<socklen_t>(filter.size());
    if (getsockopt(fd, level_of(family), MCAST_MSFILTER, filter.data(), &size) != 0) continue;  // EADDRNOTAVAIL
    group_filter head{};
    std::memcpy(&head, filter.data(), offsetof(group_filter, gf_slist));
    membership.only_from = head.gf_fmode == MCAST_INCLUDE;
    if (head.gf_numsrc > most_sources)
      return fail(Error::unsupported("read multicast groups", fmt::format("{} sources are too many", head.gf_numsrc)));
    for (size_t source = 0; source < head.gf_numsrc; ++source) {
      sockaddr_storage name{};
      std::memcpy(&name, &filter[offsetof(group_filter, gf_slist) + source * sizeof name], sizeof name);
      membership.sources.push_back(kernel::endpoint_of(name).address);
    }
    found.push_back(std::move(membership));
  }
  return found;
}

void encode_memberships(const std::vector<Membership>& memberships, int family, socket_more_entry& more) {
  for (const auto& membership : memberships) {
    auto& entry = *more.add_memberships();
    entry.set_group(bytes_in(membership.group, family)), entry.set_device(membership.device);
    entry.set_only_from(membership.only_from);
    for (const auto& source : membership.sources) entry.add_sources(bytes_in(source, family));
  }
}

Result<std::vector<Membership>> decode_memberships(const socket_more_entry& more, int family,
                                                   const std::string& where) {
  const auto reject = [&](std::string_view field, std::string cause) {
    return fail(Error::invalid("decode multicast groups", std::move(cause),
                               fmt::format("{}, field memberships.{}", where, field)));
  };
  std::vector<Membership> memberships;
  for (const auto& entry : more.memberships()) {
    if (entry.group().size() != address_size(family)) return reject("group", "it is no address of the family");
    if (entry.device().empty() || entry.device().size() >= IFNAMSIZ) return reject("device", "it is no device's name");
    if (static_cast<size_t>(entry.sources_size()) > most_sources) return reject("sources", "they are too many");
    Membership membership{.group = address_in(entry.group()), .device = entry.device()};
    membership.only_from = entry.only_from(), membership.device_index = if_nametoindex(membership.device.c_str());
    for (const auto& source : entry.sources()) {
      if (source.size() != address_size(family)) return reject("sources", "one is no address of the family");
      membership.sources.push_back(address_in(source));
    }
    memberships.push_back(std::move(membership));
  }
  return memberships;
}

void check_memberships(const std::vector<Membership>& memberships, const std::string& subject,
                       Diagnostics& diagnostics) {
  for (const auto& membership : memberships) {
    if (membership.device_index == 0)
      diagnostics.refuse(subject,
                         fmt::format("it is in a multicast group on {}, which does not exist here", membership.device),
                         "make that device");
  }
}

void add_memberships(const std::vector<Membership>& memberships, int family, int fd, plan::Calls& calls) {
  for (const auto& membership : memberships) {
    group_req request{};
    request.gr_interface = membership.device_index, request.gr_group = name_of(membership.group, family);
    calls.push_back(
        plan::call(SYS_setsockopt, fd, level_of(family), MCAST_JOIN_GROUP, plan::struct_in(request), sizeof request));
    if (!membership.only_from && membership.sources.empty()) continue;
    const Bytes filter = filter_of(membership, family, membership.sources.size());
    calls.push_back(plan::call(SYS_setsockopt, fd, level_of(family), MCAST_MSFILTER, plan::In{filter}, filter.size()));
  }
}

Result<uint32_t> multicast_device(const kernel::KernelMemory& memory, int fd) {
  return static_cast<uint32_t>(TRY(memory.get(TRY(memory.socket(fd)), "inet_sock", "mc_index")));
}

}  // namespace stasis::resource
