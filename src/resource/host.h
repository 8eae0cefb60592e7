// What this machine and stasis itself offer to what is restored: looked up once, asked by many tasks.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/types.h"

namespace stasis::resource {

struct Host {
  uint32_t processors = 1;                 ///< configured, online or not
  std::array<uint64_t, 16> hard_limits{};  ///< of stasis, by RLIMIT_*
  bool can_raise_limits = false;           ///< CAP_SYS_RESOURCE
  int32_t oom_score_adj = 0;               ///< of stasis
  bool has_protection_keys = false;        ///< pkeys(7)
  std::vector<AddressRange> vdso;          ///< the parts of the vDSO block, ascending, relative to its beginning
};

const Host& host();

/// Where the parts of a vDSO block lie, relative to its beginning.
std::vector<AddressRange> vdso_shape(std::vector<AddressRange> parts);

}  // namespace stasis::resource
