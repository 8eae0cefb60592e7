#include "memory/instant_pages.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

namespace stasis::memory {

Result<CopiedPages> CopiedPages::copy(pid_t host_pid, std::vector<AddressRange> ranges) {
  CopiedPages copied;
  copied.ranges_ = std::move(ranges);
  for (const auto& range : copied.ranges_) {
    copied.offsets_.push_back(copied.size_);
    copied.size_ += range.size();
  }
  if (copied.size_ == 0) return copied;
  copied.bytes_ = std::make_unique_for_overwrite<uint8_t[]>(copied.size_);
  TRY(ProcessPages(host_pid).read_ranges(copied.ranges_, {copied.bytes_.get(), copied.size_}));
  return copied;
}

uint64_t CopiedPages::take(uint64_t address, std::span<uint8_t> buffer, uint64_t& next) const {
  const auto range = std::ranges::upper_bound(ranges_, address, {}, &AddressRange::end);
  next = range == ranges_.end() ? ~uint64_t{0} : std::max(range->begin, address);
  if (next != address) return 0;
  const uint64_t count = std::min<uint64_t>(buffer.size(), range->end - address);
  const uint64_t offset = offsets_[static_cast<size_t>(range - ranges_.begin())] + (address - range->begin);
  std::memcpy(buffer.data(), bytes_.get() + offset, count);
  return count;
}

Status InstantPages::read(uint64_t address, std::span<uint8_t> buffer) {
  while (!buffer.empty()) {
    uint64_t next = 0;
    uint64_t done = copied_.take(address, buffer, next);
    if (done == 0) {
      if (!held_) return fail(Error::internal("read memory", fmt::format("address {:#x} was not copied", address)));
      done = std::min<uint64_t>(buffer.size(), next - address);
      TRY(held_->read(address, buffer.first(done)));
    }
    address += done;
    buffer = buffer.subspan(done);
  }
  return {};
}

}  // namespace stasis::memory
