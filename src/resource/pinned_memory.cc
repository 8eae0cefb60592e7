#include "resource/pinned_memory.h"

#include <chrono>
#include <thread>
#include <vector>

#include "kernel/process.h"
#include "resource/aio.h"
#include "resource/kernel_access.h"
#include "resource/memory_mappings.h"

namespace stasis::resource {
namespace {

/// Whether requests of one of the contexts with these rings are under way, after all the time that a device takes.
/// Where nobody may look they are.
Result<bool> is_any_under_way(pid_t witness, const std::vector<uint64_t>& rings) {
  constexpr std::chrono::microseconds longest{50'000}, step{200};
  if (rings.empty()) return false;
  KernelAccess access;
  if (!access.memory) return true;
  const auto& per_cpu = *TRY(access.per_cpu());
  const auto deadline = std::chrono::steady_clock::now() + longest;
  for (const uint64_t ring : rings) {
    while (TRY(is_under_way(*access.memory, per_cpu, witness, ring))) {
      if (std::chrono::steady_clock::now() > deadline) return true;
      std::this_thread::sleep_for(step);
    }
  }
  return false;
}

}  // namespace

Result<bool> may_be_pinned(pid_t witness) {
  if (TRY(kernel::read_status(witness)).pinned_kb != 0) return true;
  std::vector<uint64_t> rings;
  for (const auto& vma : TRY(kernel::read_maps(witness))) {
    if (vma.path == "anon_inode:[io_uring]") return true;  // whether its requests pin pages cannot be seen
    if (classify(vma).kind == VmaKind::aio_ring) rings.push_back(vma.range.begin);
  }
  return is_any_under_way(witness, rings);
}

}  // namespace stasis::resource
