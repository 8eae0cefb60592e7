#include "memory/running_pages.h"

#include <cstring>

namespace stasis::memory {

Status RunningPages::read(uint64_t address, std::span<uint8_t> buffer) {
  const AddressRange range{address, address + buffer.size()};
  return read_ranges({&range, 1}, buffer);
}

Status RunningPages::read_ranges(std::span<const AddressRange> ranges, std::span<uint8_t> buffer) {
  if (!gone_) {
    const Status read = pages_.read_ranges(ranges, buffer);
    if (read) return {};
    if (read.error().code() == ErrorCode::gone) gone_ = true;
  }
  for (const AddressRange& range : ranges) {
    for (uint64_t at = range.begin; at < range.end; at += page_size, buffer = buffer.subspan(page_size)) {
      const auto page = buffer.first(page_size);
      if (gone_ || !pages_.read(at, page)) std::memset(page.data(), 0, page.size());
    }
  }
  return {};
}

}  // namespace stasis::memory
