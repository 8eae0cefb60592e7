// Looking for pages of zeros.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/types.h"

namespace stasis::memory {

/// Most pages that are not zero say so in their first bytes.
inline bool is_zero_page(const uint8_t* page) {
  uint64_t head[8];
  std::memcpy(head, page, sizeof head);
  if ((head[0] | head[1] | head[2] | head[3] | head[4] | head[5] | head[6] | head[7]) != 0) return false;
  return std::memcmp(page, page + sizeof head, page_size - sizeof head) == 0;
}

}  // namespace stasis::memory
