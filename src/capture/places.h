// Where in a foreign address space there is room for us.
#pragma once

#include <sys/types.h>

#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "kernel/proc.h"
#include "model/memory.h"

namespace stasis::capture {

/// What is occupied, in ascending order.
struct Occupied {
  AddressRange range;
  bool is_stack = false;  ///< may grow downwards
  bool is_vdso = false;
  bool holds_private_code = false;  ///< executable, and a change of it stays with this address space
};
std::vector<Occupied> occupied_by(const std::vector<kernel::MapsEntry>& maps);
std::vector<Occupied> occupied_by(const model::AddressSpace& space);

/// A hole of at least `size` bytes, away from stacks that may grow and from neighbours it could be merged with.
Result<AddressRange> find_gap(const std::vector<Occupied>& occupied, uint64_t size);

/// The address of stub_space unused (zero) bytes at the end of an executable mapping: of the vDSO if there is one.
Result<uint64_t> find_stub_place(pid_t pid, const std::vector<Occupied>& occupied);

}  // namespace stasis::capture
