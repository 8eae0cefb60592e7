// CaptureContext::kept: the kernel's memory, opened once for all rooms that need it, by the first that does.
#pragma once

#include <fmt/format.h>

#include <optional>
#include <string>
#include <string_view>

#include "kernel/kernel_memory.h"
#include "kernel/per_cpu.h"

namespace stasis::resource {

/// For a diagnostic, where it cannot be opened: "… only the kernel's memory tells, which cannot be read: …".
inline std::string told_by_memory_alone(std::string_view what, const Error& cause) {
  return fmt::format("{} only the kernel's memory tells, which cannot be read: {}", what, cause.message());
}

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
