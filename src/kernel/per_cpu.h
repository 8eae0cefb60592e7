// Memory of which each processor has a copy of its own (alloc_percpu): a pointer to it leads nowhere by itself.
//
// How far each copy is away from that is the same for all such memory, and no interface tells it. An array of the
// kernel's own that is laid out so (BPF_MAP_TYPE_PERCPU_ARRAY) shows it: its pointer is read like any other, and a BPF
// helper tells where a processor's copy is.
#pragma once

#include "kernel/kernel_memory.h"

namespace stasis::kernel {

class PerCpu {
 public:
  static Result<PerCpu> learn(const KernelMemory&);
  /// Where the copies are, of all processors that there may be.
  std::vector<uint64_t> copies(uint64_t pointer) const;

 private:
  std::vector<uint64_t> distances_;
};

}  // namespace stasis::kernel
