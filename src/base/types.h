// Vocabulary types: numbers that must not be mixed up.
#pragma once

#include <sys/types.h>

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <fmt/format.h>

namespace stasis {

/// An integer with a meaning. Explicit to make, ordered, hashable, printable.
template <typename Tag, typename Rep>
struct StrongInt {
  Rep value{};

  constexpr StrongInt() = default;
  constexpr explicit StrongInt(Rep v) : value(v) {}
  friend constexpr auto operator<=>(StrongInt, StrongInt) = default;
};

/// A process (thread group) id; in the model always as the tree's own pid namespace sees it.
using Pid = StrongInt<struct PidTag, pid_t>;
/// A thread id, same namespace rule.
using Tid = StrongInt<struct TidTag, pid_t>;
/// The identity of a shared kernel object (a descriptor table, an open file description …) inside one Application.
/// Means nothing to the kernel. 0 is "none".
using ObjectId = StrongInt<struct ObjectIdTag, uint32_t>;

constexpr Tid leader_of(Pid pid) { return Tid{pid.value}; }

/// An address in somebody else's address space: never dereferenced here.
struct RemoteAddress {
  uint64_t value = 0;
  friend constexpr auto operator<=>(RemoteAddress, RemoteAddress) = default;
  constexpr RemoteAddress operator+(uint64_t bytes) const { return {value + bytes}; }
  constexpr explicit operator bool() const { return value != 0; }
};

/// Half-open range of addresses.
struct AddressRange {
  uint64_t begin = 0;
  uint64_t end = 0;
  friend constexpr auto operator<=>(const AddressRange&, const AddressRange&) = default;
  constexpr uint64_t size() const { return end - begin; }
  constexpr bool empty() const { return end <= begin; }
  constexpr bool contains(uint64_t address) const { return begin <= address && address < end; }
  constexpr bool overlaps(const AddressRange& other) const { return begin < other.end && other.begin < end; }
};

constexpr uint64_t page_size = 4096;

using Bytes = std::vector<uint8_t>;
using ByteView = std::span<const uint8_t>;

/// The bytes of a plain kernel structure.
template <typename T>
Bytes bytes_of(const T& value) {
  const auto* first = reinterpret_cast<const uint8_t*>(&value);
  return Bytes(first, first + sizeof value);
}

}  // namespace stasis

template <typename Tag, typename Rep>
struct std::hash<stasis::StrongInt<Tag, Rep>> {
  size_t operator()(stasis::StrongInt<Tag, Rep> number) const noexcept { return std::hash<Rep>{}(number.value); }
};

template <typename Tag, typename Rep>
struct fmt::formatter<stasis::StrongInt<Tag, Rep>> : fmt::formatter<Rep> {
  template <typename Context>
  auto format(stasis::StrongInt<Tag, Rep> number, Context& context) const {
    return fmt::formatter<Rep>::format(number.value, context);
  }
};
