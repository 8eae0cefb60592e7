// The verifier's model of one address space: what is mapped, and which pages have been filled.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/types.h"
#include "model/memory.h"

namespace stasis::plan {

/// The rule that a step breaks, with the errno Linux would answer; nothing: it is in order.
using Broken = std::optional<std::string>;

class SpaceModel {
 public:
  /// Of stasis itself: full of mappings that no Application has.
  static SpaceModel of_supervisor() {
    SpaceModel space;
    space.foreign_ = true;
    return space;
  }

  /// mmap with MAP_FIXED_NOREPLACE, and `flags` beside.
  Broken map(uint64_t begin, uint64_t length, uint32_t protection, bool shared, uint32_t flags = 0);
  /// shmat(2) of a whole System V segment. One that is attached without PROT_WRITE never gets it.
  Broken attach(uint64_t begin, uint64_t length, uint32_t protection, ObjectId segment);
  Broken move(uint64_t from, uint64_t length, uint64_t to);
  Broken unmap(uint64_t begin, uint64_t length);
  Broken protect(uint64_t begin, uint64_t length, uint32_t protection);
  /// Bytes are written to it.
  Broken fill(AddressRange range);
  /// Bytes will be written to it, by somebody else: it must be empty, and nothing may touch it from now on.
  Broken owe(AddressRange range);
  bool owes() const { return !owed_.empty(); }
  /// What was written to private pages is gone again.
  Broken drop(uint64_t begin, uint64_t length);
  /// Everything wanted is there, nothing else is, and those private pages that the images hold have been filled, and no
  /// others. `segments` tells what is System V memory.
  Broken compare(const model::AddressSpace& wanted, const std::map<ObjectId, model::SharedMemory>& segments = {}) const;
  /// Whether every private anonymous mapping that is to be without huge pages was made so.
  bool keeps_huge_pages_out(const model::AddressSpace& wanted) const;

 private:
  struct Area {
    uint64_t end = 0;
    uint32_t protection = 0;
    bool shared = false;
    ObjectId segment;     ///< of System V; 0: none
    uint64_t origin = 0;  ///< where its first byte would be: what is mapped may be a part of it
    bool read_only = false;
    bool never_huge = false;  ///< mapped with MAP_STACK

    /// Side by side they are one mapping to the kernel (mm/vma.c, can_vma_merge_after).
    bool is_like(const Area& other) const {
      return shared == other.shared && segment == other.segment && origin == other.origin &&
             read_only == other.read_only && never_huge == other.never_huge;
    }
  };
  Broken spares_owed(AddressRange range) const;
  Broken compare_attached(const model::Mapping&, const Area&, bool system_v) const;

  /// Disjoint ranges: begin → end.
  using Ranges = std::map<uint64_t, uint64_t>;

  /// The first address of the range that no area with these protection bits covers; its end: all is covered.
  uint64_t covered_until(AddressRange range, uint32_t protection) const;
  uint64_t filled_until(AddressRange range) const;
  /// The first address of the range that is filled; its end: there is none.
  uint64_t first_filled(AddressRange range) const;
  void forget_filled(AddressRange range);

  bool foreign_ = false;
  std::map<uint64_t, Area> areas_;  ///< by begin, disjoint
  Ranges filled_;                   ///< those that are owed as well
  Ranges owed_;
};

}  // namespace stasis::plan
