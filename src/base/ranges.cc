#include "base/ranges.h"

#include <algorithm>

namespace stasis {

void merge(std::vector<AddressRange>& ranges) {
  std::ranges::sort(ranges);
  size_t kept = 0;
  for (const AddressRange& range : ranges) {
    if (kept != 0 && range.begin <= ranges[kept - 1].end)
      ranges[kept - 1].end = std::max(ranges[kept - 1].end, range.end);
    else
      ranges[kept++] = range;
  }
  ranges.resize(kept);
}

}  // namespace stasis
