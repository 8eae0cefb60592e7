// CaptureContext::kept: the kernel's memory, opened once for all rooms that need it, by the first that does.
#pragma once

#include "kernel/kernel_memory.h"

namespace stasis::resource {

struct KernelAccess {
  Result<kernel::KernelMemory> memory = kernel::KernelMemory::open();
};

}  // namespace stasis::resource
