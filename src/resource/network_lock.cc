#include "resource/network_lock.h"

#include <fmt/format.h>
#include <sys/random.h>

#include "kernel/nf_tables.h"
#include "resource/iptables_lock.h"

namespace stasis::resource {
namespace {

using kernel::Connection;

/// The table that CRIU makes, and looks for. It cuts the name off after 31 characters with the family in front.
std::string table_of(const std::string& run_id) {
  constexpr size_t longest = sizeof "CRIU-" - 1 + 21;
  return ("CRIU-" + run_id).substr(0, longest);
}

/// While the dump goes on, the table belongs to this process and goes with it. Only when the tree has ended does one
/// that stays take its place: whoever is killed before leaves nothing that an application could suffer from.
class NfTablesLock final : public NetworkLock {
 public:
  static Result<std::unique_ptr<NetworkLock>> hold(std::span<const Connection> connections) {
    uint64_t random = 0;
    if (getrandom(&random, sizeof random, 0) != sizeof random) return fail_errno("getrandom");
    const auto run_id = fmt::format("{:016x}", random);
    auto table = TRY(kernel::DroppingTable::create("stasis-" + run_id, true));
    TRY(table.drop(connections));
    return std::unique_ptr<NetworkLock>(new NfTablesLock(std::move(table), run_id, connections));
  }

  Status keep() override { return renew_network_lock(record(), connections_); }

  NetworkLockRecord record() const override { return {NetworkLockMethod::nftables, run_id_}; }

 private:
  NfTablesLock(kernel::DroppingTable table, std::string run_id, std::span<const Connection> connections)
      : table_(std::move(table)), run_id_(std::move(run_id)), connections_(connections.begin(), connections.end()) {}
  kernel::DroppingTable table_;
  std::string run_id_;
  std::vector<Connection> connections_;
};

/// Somebody else sees to it.
class NoLock final : public NetworkLock {
 public:
  Status keep() override { return {}; }
  NetworkLockRecord record() const override { return {NetworkLockMethod::skip, {}}; }
};

}  // namespace

Result<std::unique_ptr<NetworkLock>> NetworkLock::hold(NetworkLockMethod method,
                                                       std::span<const Connection> connections) {
  if (method == NetworkLockMethod::nftables) return NfTablesLock::hold(connections);
  if (method == NetworkLockMethod::iptables) return hold_iptables_lock(connections);
  return std::make_unique<NoLock>();
}

Result<bool> remove_network_lock(const NetworkLockRecord& record, std::span<const Connection> connections) {
  if (record.method == NetworkLockMethod::iptables) return remove_iptables_lock(connections);
  if (record.method == NetworkLockMethod::skip || record.run_id.empty()) return false;
  return kernel::remove_table(table_of(record.run_id));
}

Status renew_network_lock(const NetworkLockRecord& record, std::span<const Connection> connections) {
  if (record.method == NetworkLockMethod::iptables) return TRY(hold_iptables_lock(connections))->keep();
  if (record.method == NetworkLockMethod::skip || record.run_id.empty()) return {};
  auto kept = TRY(kernel::DroppingTable::create(table_of(record.run_id), false));
  return kept.drop(connections);
}

void add_leftover(const NetworkLockRecord& record, std::vector<Connection> connections, std::vector<Leftover>& found) {
  const bool by_tables = record.method == NetworkLockMethod::nftables;
  if (connections.empty() || record.method == NetworkLockMethod::skip || (by_tables && record.run_id.empty())) return;
  const auto where = by_tables ? "table inet " + table_of(record.run_id) + " of nf_tables" : "rules of iptables";
  auto what = fmt::format("packets of TCP connections ({}) are dropped: {}", connections.size(), where);
  found.push_back(
      {std::move(what), "restore removes it; if there will be none: stasis cleanup",
       [record, connections = std::move(connections)] { return remove_network_lock(record, connections); }});
}

}  // namespace stasis::resource
