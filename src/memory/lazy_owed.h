// Which pages of an address space are still to come, and where in the images they are: an application that moves,
// discards and unmaps memory meanwhile changes that.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

#include "base/types.h"

namespace stasis::memory {

class OwedPages {
 public:
  struct Run {
    AddressRange range;   ///< where they belong
    uint64_t source = 0;  ///< the address that the first of them has in the images
    friend bool operator==(const Run&, const Run&) = default;
  };

  /// Replaces what was owed there.
  void owe(AddressRange, uint64_t source);
  void forget(AddressRange);
  /// What is owed in the range belongs to `to` and behind from now on, and nothing else does.
  void move(AddressRange, uint64_t to);

  /// The first pages from `address` on.
  std::optional<Run> next(uint64_t address) const;
  bool empty() const { return pieces_.empty(); }
  uint64_t bytes() const { return bytes_; }

 private:
  struct Piece {
    uint64_t end = 0, source = 0;
  };
  std::map<uint64_t, Piece> pieces_;  ///< by begin, disjoint
  uint64_t bytes_ = 0;
};

}  // namespace stasis::memory
