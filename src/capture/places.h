// Where in a foreign address space there is room for us.
#pragma once

#include <sys/types.h>

#include <span>

#include "base/result.h"
#include "base/types.h"
#include "kernel/proc.h"

namespace stasis::capture {

/// A hole of at least `size` bytes, away from stacks that may grow and from neighbours it could be merged with.
Result<AddressRange> find_gap(std::span<const kernel::MapsEntry> maps, uint64_t size);

/// The address of stub_space unused (zero) bytes at the end of an executable mapping: of the vDSO if there is one.
Result<uint64_t> find_stub_place(pid_t pid, std::span<const kernel::MapsEntry> maps);

}  // namespace stasis::capture
