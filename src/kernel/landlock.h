// Landlock (landlock(7)): which threads are in a sandbox of it. No interface tells; the kernel's memory does
// (kernel/kernel_memory.h). Where in the credentials the domain is depends on which security modules the kernel has
// been started with: a thread of our own that goes into a sandbox shows it, and ends.
#pragma once

#include <optional>

#include "kernel/kernel_memory.h"

namespace stasis::kernel {

class LandlockDomains {
 public:
  /// Whether anybody can be in one.
  static bool are_possible();
  static Result<LandlockDomains> learn(const KernelMemory&);
  Result<bool> contain(const KernelMemory&, pid_t tid) const;

 private:
  uint64_t place_ = 0;  ///< of the domain in what the security modules have of a task's credentials
};

}  // namespace stasis::kernel
