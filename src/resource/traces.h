// What a dump that ends the tree leaves beside what its rooms know of (leftovers.h).
#pragma once

#include <set>
#include <string>
#include <vector>

#include "resource/leftovers.h"
#include "resource/network_facts.h"

namespace stasis::resource {

class CaptureContext;

/// From all rooms, and what drops the packets of connections.
std::vector<Leftover> leftovers(const model::Application&, const NetworkFacts&);

/// What no descriptor and no mapping leads to, and images say nothing of: that it was the tree's is seen only as long
/// as the tree is there. stasis has placed none of it.
class Traces {
 public:
  explicit Traces(const CaptureContext&);
  /// The tree has ended: its cgroups that nobody is in, and the System V objects that one of its processes has made or
  /// was the last to use.
  std::vector<Leftover> leftovers(const model::Application&) const;

 private:
  std::set<int> pids_;
  std::set<std::string> cgroups_;  ///< their directories
};

}  // namespace stasis::resource
