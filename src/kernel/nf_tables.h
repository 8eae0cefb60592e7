// A packet filter (nf_tables) that drops what belongs to certain TCP connections, in the network namespace of the
// caller. It is talked to over netlink (NETLINK_NETFILTER): the program `nft` is not needed, but shows it
// (`nft list table inet NAME`).
#pragma once

#include <span>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "kernel/inet.h"

namespace stasis::kernel {

/// Packets with this mark pass (SO_MARK): they are sent to a connection to repair it.
constexpr uint32_t repair_mark = 0xC114;

/// A table of family inet with chains `input` and `output`, and sets `conns4` and `conns6` of connections whose packets
/// are dropped, in both directions.
class DroppingTable {
 public:
  /// `owned`: the table goes when this object does, and when the process ends, however it ends (NFT_TABLE_F_OWNER,
  /// Linux 5.12). Otherwise it stays.
  static Result<DroppingTable> create(const std::string& name, bool owned);
  /// Packets of these are dropped, too, from now on.
  Status drop(std::span<const Connection>);

 private:
  DroppingTable(UniqueFd netlink, std::string name) : netlink_(std::move(netlink)), name_(std::move(name)) {}
  UniqueFd netlink_;
  std::string name_;
};

/// Whether there was such a table of family inet.
Result<bool> remove_table(const std::string& name);

}  // namespace stasis::kernel
