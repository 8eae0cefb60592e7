// Sets of signals as the kernel shows them (proc(5), SigPnd and its like): bit 0 is signal 1.
#pragma once

#include <cstdint>

namespace stasis::kernel {

constexpr uint64_t signal_bit(int signal) { return uint64_t{1} << (signal - 1); }

}  // namespace stasis::kernel
