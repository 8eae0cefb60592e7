// The flags of mappings, without a look at what is in them.
//
// Only /proc/PID/smaps shows them, which counts the pages of each mapping on the way: 50 to 70 ms for a GiB, in which a
// tree that is being saved stands still. A BPF iterator over the mappings of a task tells the same in microseconds
// (Documentation/bpf/bpf_iterators.rst; Linux 6.1, CAP_BPF, CAP_PERFMON, a kernel with CONFIG_DEBUG_INFO_BTF). It gives
// the kernel's bits, whose names are learnt from mappings of our own (flag_names.h).
#pragma once

#include <optional>
#include <vector>

#include "base/result.h"
#include "kernel/bpf_iterator.h"
#include "kernel/flag_names.h"
#include "kernel/proc.h"

namespace stasis::kernel {

struct FlaggedRange {
  AddressRange range;
  uint64_t flags = 0;
};

class MappingFlags {
 public:
  /// Takes three milliseconds or more (kernel_memory.h, KernelTypes). An error where the kernel does not let us; then
  /// there is smaps.
  static Result<MappingFlags> open();

  /// As read_smaps, but nothing is counted. From smaps where flags are met that could not be learnt (huge pages, which
  /// have another size, are among them).
  Result<std::vector<MapsEntry>> read(pid_t tid) const;
  /// Ascending. Of the address space of a thread that does not run.
  Result<std::vector<FlaggedRange>> ranges(pid_t tid) const;
  const FlagNames& names() const { return names_; }

 private:
  BpfIterator iterator_;
  FlagNames names_;
  std::optional<MapsEntry> gate_;  ///< the page of vsyscalls, as smaps shows it
};

}  // namespace stasis::kernel
