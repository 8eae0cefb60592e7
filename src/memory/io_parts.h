// Lists of buffers for writev(2) and its like, which may write less than all.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace stasis::memory {

/// What is left of the parts when `done` bytes of them are written; no empty part comes first.
inline std::span<iovec> rest_of(std::span<iovec> parts, size_t done) {
  while (!parts.empty() && done >= parts.front().iov_len) {
    done -= parts.front().iov_len;
    parts = parts.subspan(1);
  }
  if (!parts.empty()) {
    parts.front().iov_base = static_cast<uint8_t*>(parts.front().iov_base) + done;
    parts.front().iov_len -= done;
  }
  return parts;
}

inline uint64_t size_of_parts(std::span<const iovec> parts) {
  uint64_t size = 0;
  for (const iovec& part : parts) size += part.iov_len;
  return size;
}

}  // namespace stasis::memory
