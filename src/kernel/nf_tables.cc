// Documentation: linux/netfilter/nf_tables.h; net/netfilter/nf_tables_api.c. All changes between BATCH_BEGIN and
// BATCH_END come into force together, or none does; the answer is there when send(2) returns.
#include "kernel/nf_tables.h"

#include <fmt/format.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>

#include <algorithm>
#include <cstring>
#include <functional>

namespace stasis::kernel {
namespace {

/// Numbers in attributes are big-endian.
Bytes number(uint32_t value) { return bytes_of(htonl(value)); }
Bytes text(std::string_view value) {
  Bytes bytes(value.begin(), value.end());
  bytes.push_back(0);
  return bytes;
}

/// Messages of one transaction.
class Batch {
 public:
  using Fill = std::function<void()>;

  explicit Batch(const std::string& table) : table_(table) { control(NFNL_MSG_BATCH_BEGIN); }

  /// NFT_MSG_…; the table's name is its first attribute, which all messages have under the same number.
  void message(int type, uint16_t flags, const Fill& fill) {
    begin((NFNL_SUBSYS_NFTABLES << 8) | type, NLM_F_REQUEST | NLM_F_ACK | flags, {NFPROTO_INET, NFNETLINK_V0, 0});
    attribute(NFTA_TABLE_NAME, text(table_));
    fill();
    end();
    ++answers_;
  }
  void attribute(uint16_t type, ByteView value) {
    append(bytes_of(nlattr{static_cast<uint16_t>(sizeof(nlattr) + value.size()), type}));
    append(value);
    align();
  }
  void nested(uint16_t type, const Fill& fill) {
    const size_t at = bytes_.size();
    append(bytes_of(nlattr{0, static_cast<uint16_t>(type | NLA_F_NESTED)}));
    fill();
    const auto length = static_cast<uint16_t>(bytes_.size() - at);
    std::memcpy(&bytes_[at], &length, sizeof length);
  }

  /// One step of a rule: how it is called, and what it works on.
  void expression(std::string_view name, const Fill& fill) {
    nested(NFTA_LIST_ELEM, [&] {
      attribute(NFTA_EXPR_NAME, text(name));
      nested(NFTA_EXPR_DATA, fill);
    });
  }

  Status send(int netlink) {
    control(NFNL_MSG_BATCH_END);
    if (::send(netlink, bytes_.data(), bytes_.size(), 0) < 0) return fail_errno("send", "NETLINK_NETFILTER");
    Bytes buffer(1 << 16);
    for (size_t answered = 0; answered < answers_;) {
      const ssize_t received = recv(netlink, buffer.data(), buffer.size(), 0);
      if (received < 0 && errno == EINTR) continue;
      if (received < static_cast<ssize_t>(sizeof(nlmsghdr) + sizeof(int)))
        return fail_errno("recv", "NETLINK_NETFILTER");
      nlmsgerr answer{};
      std::memcpy(&answer, buffer.data() + sizeof(nlmsghdr),
                  std::min<size_t>(sizeof answer, received - sizeof(nlmsghdr)));
      if (answer.error != 0)
        return fail(Error::system("change the packet filter", -answer.error, "nf_tables, table inet " + table_));
      ++answered;
    }
    return {};
  }

 private:
  void append(ByteView bytes) { bytes_.insert(bytes_.end(), bytes.begin(), bytes.end()); }
  void align() { bytes_.resize((bytes_.size() + NLMSG_ALIGNTO - 1) / NLMSG_ALIGNTO * NLMSG_ALIGNTO); }
  void begin(int type, int flags, nfgenmsg head) {
    message_at_ = bytes_.size();
    nlmsghdr header{};
    header.nlmsg_type = static_cast<uint16_t>(type), header.nlmsg_flags = static_cast<uint16_t>(flags);
    append(bytes_of(header));
    append(bytes_of(head));
  }
  void end() {
    const auto length = static_cast<uint32_t>(bytes_.size() - message_at_);
    std::memcpy(&bytes_[message_at_], &length, sizeof length);
  }
  void control(int type) {
    begin(type, NLM_F_REQUEST, {AF_UNSPEC, NFNETLINK_V0, htons(NFNL_SUBSYS_NFTABLES)});
    end();
  }

  const std::string& table_;
  Bytes bytes_;
  size_t message_at_ = 0, answers_ = 0;
};

/// One of the two sets, and where in a packet that stands which it is about. Parts of a key begin at multiples of four
/// bytes, in registers of that size.
struct Family {
  const char* set;
  uint8_t protocol;
  uint32_t id, address_size, source_at, destination_at, address_type;
  uint32_t key_size() const { return 2 * (address_size + 4); }
  /// As `nft` has it, six bits for each part: for showing only.
  uint32_t key_type() const {
    constexpr uint32_t port_type = 13;
    return address_type << 18 | port_type << 12 | address_type << 6 | port_type;
  }
};
constexpr Family families[] = {
    {"conns4", NFPROTO_IPV4, 1, 4, offsetof(iphdr, saddr), offsetof(iphdr, daddr), 7},
    {"conns6", NFPROTO_IPV6, 2, 16, offsetof(ip6_hdr, ip6_src), offsetof(ip6_hdr, ip6_dst), 8},
};

void add_set(Batch& batch, const Family& family) {
  batch.message(NFT_MSG_NEWSET, NLM_F_CREATE, [&] {
    batch.attribute(NFTA_SET_NAME, text(family.set));
    batch.attribute(NFTA_SET_KEY_TYPE, number(family.key_type()));
    batch.attribute(NFTA_SET_KEY_LEN, number(family.key_size()));
    batch.attribute(NFTA_SET_ID, number(family.id));
  });
}

void add_chain(Batch& batch, const char* name, uint32_t hook) {
  batch.message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, [&] {
    batch.attribute(NFTA_CHAIN_NAME, text(name));
    batch.nested(NFTA_CHAIN_HOOK, [&] {
      batch.attribute(NFTA_HOOK_HOOKNUM, number(hook));
      batch.attribute(NFTA_HOOK_PRIORITY, number(0));
    });
    batch.attribute(NFTA_CHAIN_TYPE, text("filter"));
  });
}

void load_meta(Batch& batch, uint32_t key) {
  batch.expression("meta", [&] {
    batch.attribute(NFTA_META_KEY, number(key));
    batch.attribute(NFTA_META_DREG, number(NFT_REG32_00));
  });
}
void expect_equal(Batch& batch, ByteView value) {
  batch.expression("cmp", [&] {
    batch.attribute(NFTA_CMP_SREG, number(NFT_REG32_00));
    batch.attribute(NFTA_CMP_OP, number(NFT_CMP_EQ));
    batch.nested(NFTA_CMP_DATA, [&] { batch.attribute(NFTA_DATA_VALUE, value); });
  });
}
void load_payload(Batch& batch, uint32_t base, uint32_t offset, uint32_t length, uint32_t into) {
  batch.expression("payload", [&] {
    batch.attribute(NFTA_PAYLOAD_DREG, number(into));
    batch.attribute(NFTA_PAYLOAD_BASE, number(base));
    batch.attribute(NFTA_PAYLOAD_OFFSET, number(offset));
    batch.attribute(NFTA_PAYLOAD_LEN, number(length));
  });
}
void verdict(Batch& batch, uint32_t code) {
  batch.expression("immediate", [&] {
    batch.attribute(NFTA_IMMEDIATE_DREG, number(NFT_REG_VERDICT));
    batch.nested(NFTA_IMMEDIATE_DATA,
                 [&] { batch.nested(NFTA_DATA_VERDICT, [&] { batch.attribute(NFTA_VERDICT_CODE, number(code)); }); });
  });
}

void add_rule(Batch& batch, const char* chain, const Batch::Fill& fill) {
  batch.message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, [&] {
    batch.attribute(NFTA_RULE_CHAIN, text(chain));
    batch.nested(NFTA_RULE_EXPRESSIONS, fill);
  });
}

/// Source address, source port, destination address, destination port: is that in the set?
void drop_what_is_in(Batch& batch, const Family& family) {
  load_meta(batch, NFT_META_NFPROTO);
  expect_equal(batch, bytes_of(family.protocol));
  load_meta(batch, NFT_META_L4PROTO);
  expect_equal(batch, bytes_of(uint8_t{IPPROTO_TCP}));
  const uint32_t registers = family.address_size / 4;
  uint32_t into = NFT_REG32_00;
  for (const auto& [address, port] : {std::pair{family.source_at, 0}, {family.destination_at, 2}}) {
    load_payload(batch, NFT_PAYLOAD_NETWORK_HEADER, address, family.address_size, into);
    load_payload(batch, NFT_PAYLOAD_TRANSPORT_HEADER, static_cast<uint32_t>(port), 2, into + registers);
    into += registers + 1;
  }
  batch.expression("lookup", [&] {
    batch.attribute(NFTA_LOOKUP_SET, text(family.set));
    batch.attribute(NFTA_LOOKUP_SET_ID, number(family.id));
    batch.attribute(NFTA_LOOKUP_SREG, number(NFT_REG32_00));
  });
  verdict(batch, NF_DROP);
}

Bytes key(const Endpoint& source, const Endpoint& destination) {
  Bytes bytes;
  for (const auto* end : {&source, &destination}) {
    bytes.insert(bytes.end(), end->address.begin(), end->address.begin() + static_cast<ptrdiff_t>(end->address_size()));
    for (const int byte : {end->port >> 8, end->port & 0xff, 0, 0}) bytes.push_back(static_cast<uint8_t>(byte));
  }
  return bytes;
}

void add_elements(Batch& batch, const Family& family, std::span<const Bytes> keys) {
  batch.message(NFT_MSG_NEWSETELEM, NLM_F_CREATE, [&] {
    batch.attribute(NFTA_SET_ELEM_LIST_SET, text(family.set));
    batch.nested(NFTA_SET_ELEM_LIST_ELEMENTS, [&] {
      for (const auto& key : keys) {
        batch.nested(NFTA_LIST_ELEM,
                     [&] { batch.nested(NFTA_SET_ELEM_KEY, [&] { batch.attribute(NFTA_DATA_VALUE, key); }); });
      }
    });
  });
}

Result<UniqueFd> open_netlink() {
  UniqueFd netlink(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER));
  if (netlink.valid()) return netlink;
  return fail(Error::system("open the packet filter", errno, "NETLINK_NETFILTER")
                  .advise("the kernel needs CONFIG_NF_TABLES; or pass --network-lock iptables or skip"));
}

}  // namespace

Result<DroppingTable> DroppingTable::create(const std::string& name, bool owned) {
  DroppingTable table(TRY(open_netlink()), name);
  Batch batch(name);
  batch.message(NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL,
                [&] { batch.attribute(NFTA_TABLE_FLAGS, number(owned ? NFT_TABLE_F_OWNER : 0)); });
  for (const auto& family : families) add_set(batch, family);
  for (const auto& [chain, hook] : {std::pair{"output", NF_INET_LOCAL_OUT}, {"input", NF_INET_LOCAL_IN}}) {
    add_chain(batch, chain, hook);
    add_rule(batch, chain, [&] {
      load_meta(batch, NFT_META_MARK);
      expect_equal(batch, bytes_of(repair_mark));
      verdict(batch, NF_ACCEPT);
    });
    for (const auto& family : families) add_rule(batch, chain, [&] { drop_what_is_in(batch, family); });
  }
  if (auto made = batch.send(table.netlink_.get()); !made) {
    return fail(std::move(made).error().advise(
        "dropping packets needs CAP_NET_ADMIN and CONFIG_NF_TABLES; or pass --network-lock iptables or skip"));
  }
  return table;
}

Status DroppingTable::drop(std::span<const Connection> connections) {
  constexpr size_t most = 1000;  // an attribute has at most 64 KiB
  std::vector<Bytes> keys[std::size(families)];
  for (const auto& connection : connections) {
    const auto local = as_sent(connection.local), remote = as_sent(connection.remote);
    auto& of_family = keys[local.family == AF_INET6 ? 1 : 0];
    of_family.push_back(key(local, remote));
    of_family.push_back(key(remote, local));
  }
  for (size_t index = 0; index < std::size(families); ++index) {
    std::ranges::sort(keys[index]);  // both ends of a connection may be ours
    keys[index].erase(std::ranges::unique(keys[index]).begin(), keys[index].end());
    for (std::span<const Bytes> left = keys[index]; !left.empty();) {
      const auto some = left.first(std::min(left.size(), most));
      Batch batch(name_);
      add_elements(batch, families[index], some);
      TRY(batch.send(netlink_.get()));
      left = left.subspan(some.size());
    }
  }
  return {};
}

Result<bool> remove_table(const std::string& name) {
  const auto netlink = TRY(open_netlink());
  Batch batch(name);
  batch.message(NFT_MSG_DELTABLE, 0, [] {});
  const auto removed = batch.send(netlink.get());
  if (removed) return true;
  if (removed.error().errno_value() == ENOENT) return false;
  return fail(removed.error());
}

}  // namespace stasis::kernel
