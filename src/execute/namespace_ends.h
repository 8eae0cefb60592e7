// Pid namespaces that would not end.
#pragma once

#include <sys/types.h>

#include <set>
#include <vector>

#include "base/types.h"

namespace stasis::execute {

/// An init that ends waits until no ids but its own are in use in its pid namespace (kernel/pid_namespace.c,
/// zap_pid_ns_processes): for ever, if it is itself in the group of a process that lived there, or if two of them are
/// in groups of each other's namespaces. While it is being built it is always about to be killed; here it is stopped
/// before, and leaves its group.
class NamespaceEnds {
 public:
  /// `agent_area` is mapped in all who are built.
  explicit NamespaceEnds(AddressRange agent_area) : agent_area_(agent_area) {}
  /// For those of them that are inits of pid namespaces. Once for each.
  void prepare(const std::vector<pid_t>& doomed);

 private:
  AddressRange agent_area_;
  std::set<pid_t> prepared_;
};

}  // namespace stasis::execute
