// Memory that the kernel shares with whoever maps it: a mapping of ours, for looking.
#pragma once

#include <sys/mman.h>

#include <cstring>
#include <string>
#include <utility>

#include "base/result.h"
#include "base/types.h"

namespace stasis::resource {

class MappedMemory {
 public:
  /// `operation` is for the error.
  static Result<MappedMemory> of(int fd, uint64_t size, uint64_t offset, const std::string& operation) {
    MappedMemory mapped;
    void* const at = mmap(nullptr, size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, static_cast<off_t>(offset));
    if (at == MAP_FAILED) return fail_errno(operation);
    mapped.bytes_ = {static_cast<const uint8_t*>(at), size};
    return mapped;
  }
  MappedMemory(MappedMemory&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  MappedMemory& operator=(MappedMemory&&) = delete;
  ~MappedMemory() {
    if (!bytes_.empty()) munmap(const_cast<uint8_t*>(bytes_.data()), bytes_.size());
  }

  ByteView bytes() const { return bytes_; }
  uint32_t word(uint64_t offset) const {
    uint32_t word = 0;
    std::memcpy(&word, bytes_.data() + offset, sizeof word);
    return word;
  }
  Bytes part(uint64_t offset, uint64_t size) const {
    return {bytes_.begin() + static_cast<ptrdiff_t>(offset), bytes_.begin() + static_cast<ptrdiff_t>(offset + size)};
  }

 private:
  MappedMemory() = default;
  ByteView bytes_;
};

}  // namespace stasis::resource
