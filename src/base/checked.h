// Arithmetic and slicing for untrusted numbers: the result or nothing, never a wrap-around.
#pragma once

#include <cstdint>
#include <optional>

#include "base/types.h"

namespace stasis {

constexpr std::optional<uint64_t> checked_add(uint64_t a, uint64_t b) {
  uint64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

constexpr std::optional<uint64_t> checked_multiply(uint64_t a, uint64_t b) {
  uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

/// bytes[offset, offset + length), or nothing if any of it lies outside.
constexpr std::optional<ByteView> checked_slice(ByteView bytes, uint64_t offset, uint64_t length) {
  const auto end = checked_add(offset, length);
  if (!end || *end > bytes.size()) return std::nullopt;
  return bytes.subspan(offset, length);
}

}  // namespace stasis
