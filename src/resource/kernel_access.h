// CaptureContext::kept: the kernel's memory, opened once for all rooms that need it, by the first that does.
#pragma once

#include <optional>

#include "kernel/kernel_memory.h"
#include "kernel/per_cpu.h"

namespace stasis::resource {

struct KernelAccess {
  Result<kernel::KernelMemory> memory = kernel::KernelMemory::open();
  /// Once `memory` is known to be there.
  Result<const kernel::PerCpu*> per_cpu() {
    if (!per_cpu_) per_cpu_ = TRY(kernel::PerCpu::learn(*memory));
    return &*per_cpu_;
  }

 private:
  std::optional<kernel::PerCpu> per_cpu_;
};

}  // namespace stasis::resource
