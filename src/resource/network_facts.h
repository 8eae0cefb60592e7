// What a dump and a restore as a whole have to know of connections with the network.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "image/directory.h"
#include "model/application.h"
#include "resource/network_lock.h"

namespace stasis::resource {

/// Options of a dump.
struct NetworkPolicy {
  bool tcp_established = false;  ///< connections are saved, and go on when they are restored
  bool tcp_close = false;        ///< connections are restored closed
  bool skip_in_flight = false;   ///< those that wait to be accepted are left out
  NetworkLockMethod lock = NetworkLockMethod::nftables;
};

/// What the inventory says.
struct NetworkFacts {
  NetworkLockRecord lock;
  bool tcp_closed = false;  ///< it was dumped with --tcp-close
};
/// Makes the checkpoint valid: writes inventory.img (image::Directory::commit), which says this, and the round of
/// tracking that begins with it.
Status commit(const model::Application&, const image::Directory&, const NetworkFacts& = {},
              const std::string& round = {});
Result<NetworkFacts> read_network_facts(const image::Directory&);

/// Of a capture (CaptureContext::kept).
class NetworkCapture {
 public:
  NetworkPolicy policy;
  NetworkLockRecord lock;
  NetworkFacts facts() const { return {lock, policy.tcp_close}; }

  /// Called before the tree is let go alive, by whatever path: packets of its connections pass again.
  void on_survival(std::function<void()> action) { on_survival_.push_back(std::move(action)); }
  /// Called when the tree has been killed: its connections end without a word.
  void on_death(std::function<Status()> action) { on_death_.push_back(std::move(action)); }
  void survive() const {
    for (const auto& action : on_survival_) action();
  }
  Status die() const {
    for (const auto& action : on_death_) TRY(action());
    return {};
  }

 private:
  std::vector<std::function<void()>> on_survival_;
  std::vector<std::function<Status()>> on_death_;
};

}  // namespace stasis::resource
