// RLIMIT_NOFILE of this process.
#pragma once

#include <cstdint>

namespace stasis::kernel {

/// Raises the soft limit to the hard one: the soft one guards programs that use select(2). What it is then; 0: unknown.
uint64_t raise_descriptor_limit();

}  // namespace stasis::kernel
