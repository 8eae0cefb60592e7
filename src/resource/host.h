// What this machine and stasis itself offer to what is restored: looked up once, asked by many tasks.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/types.h"
#include "model/task.h"

namespace stasis::resource {

/// How the kernel lays out the block that it maps for a process: data pages (vvar) and behind them the code. CRIU takes
/// neighbouring data areas for one, so only their size together counts.
struct VdsoShape {
  uint64_t data_size = 0, code_size = 0;
  friend bool operator==(const VdsoShape&, const VdsoShape&) = default;
};

struct Host {
  uint32_t processors = 1;           ///< configured, online or not
  bool can_raise_limits = false;     ///< CAP_SYS_RESOURCE
  bool has_protection_keys = false;  ///< pkeys(7)
  /// Since Linux 6.7 what is mapped with MAP_STACK is without huge pages (include/linux/mman.h, calc_vm_flag_bits).
  bool stacks_are_never_huge = false;
  VdsoShape vdso;

  // ---- what stasis itself has, and whoever it creates is born with

  std::array<model::ResourceLimit, 16> limits{};  ///< by RLIMIT_*
  int32_t oom_score_adj = 0;
  uint32_t coredump_filter = 0;
  uint32_t personality = 0;
  bool thp_disabled = false;
};

const Host& host();

inline constexpr uint32_t ask_personality = 0xffffffff;  ///< personality(2): an answer, and nothing changes

}  // namespace stasis::resource
