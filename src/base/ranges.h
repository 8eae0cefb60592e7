// Lists of address ranges.
#pragma once

#include <vector>

#include "base/types.h"

namespace stasis {

/// Sorts them, and makes one of those that touch or overlap.
void merge(std::vector<AddressRange>&);

}  // namespace stasis
