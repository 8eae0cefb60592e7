// Between the end of a tree and its restore, packets of its connections are dropped: else the kernel would answer them
// with a reset, and the connection would be gone for its peer. The same holds while a dump reads the connections, for
// the kernel receives and acknowledges whether the tasks are stopped or not.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "base/result.h"
#include "kernel/inet.h"
#include "resource/leftovers.h"

namespace stasis::resource {

/// Numbers as in the inventory.
enum class NetworkLockMethod : uint8_t { iptables, nftables, skip };

/// What the inventory says of it.
struct NetworkLockRecord {
  NetworkLockMethod method = NetworkLockMethod::iptables;
  std::string run_id;  ///< what the nf_tables table is named after; empty: there is none
};

/// Packets are dropped while it lives.
class NetworkLock {
 public:
  static Result<std::unique_ptr<NetworkLock>> hold(NetworkLockMethod, std::span<const kernel::Connection>);
  virtual ~NetworkLock() = default;
  /// They go on to be when this process has ended, until a restore comes (remove_network_lock).
  virtual Status keep() = 0;
  virtual NetworkLockRecord record() const = 0;
};

/// Whatever was kept of these connections. Whether there was something.
Result<bool> remove_network_lock(const NetworkLockRecord&, std::span<const kernel::Connection>);

/// As it was before it was removed: the restore that removed it has failed in its last step.
Status renew_network_lock(const NetworkLockRecord&, std::span<const kernel::Connection>);

/// It stays when the tree has ended; nothing, if there is none.
void add_leftover(const NetworkLockRecord&, std::vector<kernel::Connection>, std::vector<Leftover>&);

}  // namespace stasis::resource
