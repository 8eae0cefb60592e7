// What the bits of a mapping's flags are called in /proc/PID/smaps ("VmFlags: rd wr mr mw …").
//
// The bits (vm_area_struct.vm_flags) are the kernel's own: they differ between versions, and no interface describes
// them. They are learnt from mappings whose flags and names are both known. The kernel prints one name for each bit
// that has one (fs/proc/task_mmu.c, show_smap_vma_flags), so a name belongs to the bits that are set where it stands.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernel/proc.h"

namespace stasis::kernel {

class FlagNames {
 public:
  struct Meaning {
    VmFlags names;
    int protection_key = 0;
    friend bool operator==(const Meaning&, const Meaning&) = default;
  };

  /// One mapping that was seen both ways.
  struct Sample {
    uint64_t flags = 0;
    Meaning meaning;
  };
  /// Nothing can be said by samples that contradict each other.
  static FlagNames learn(const std::vector<Sample>& samples);

  /// Nothing: the samples do not tell. A bit that was set in none of them, or one without others that it was always
  /// seen with.
  std::optional<Meaning> of(uint64_t flags) const;

 private:
  /// Bits that were set in the same samples. Which of them a name belongs to does not matter, as long as all are set.
  struct Group {
    uint64_t bits = 0;
    Meaning meaning;
  };
  std::vector<Group> groups_;
  uint64_t known_ = 0;
};

}  // namespace stasis::kernel
