// One VMA of /proc/PID/smaps ↔ one model::Mapping, as far as the text alone tells.
#pragma once

#include <string>
#include <vector>

#include "kernel/proc.h"
#include "model/memory.h"

namespace stasis::resource {

/// What stands behind a VMA, from the name that smaps gives it.
enum class VmaKind {
  anonymous,
  file,            ///< something with a name in a file system, or that had one
  shared_segment,  ///< MAP_SHARED | MAP_ANONYMOUS: an unnamed file in the kernel's own tmpfs or hugetlbfs
  system_v,        ///< attached by shmat(2): a file in the kernel's own tmpfs whose inode number is the segment's id
  aio_ring,        ///< of a context of io_setup(2)
  io_uring,        ///< queues of one
  packet_rings,    ///< of a packet socket
  vdso,
  vvar,
  vsyscall,
  unsupported,
};

struct Classified {
  VmaKind kind = VmaKind::unsupported;
  std::string problem;  ///< unsupported: what it is, and why it cannot be saved
};
/// `tracked`: write protection by a userfaultfd may be ours, and is looked at later.
Classified classify(const kernel::MapsEntry&, bool tracked = false);

inline constexpr const char* write_protected_problem =
    "write-protected by a userfaultfd, whose handler cannot be saved (`stasis dirty --stop -t ROOT` ends what pre-dump "
    "has begun for another root)";

/// Range, protection, flags, advice, locks, keys, names. Backing is set, but `file` and `shared_memory` are not.
model::Mapping mapping_of(const kernel::MapsEntry&, VmaKind);

/// Joins neighbours that differ in nothing: the kernel keeps them apart only for reasons of its own (anon_vma chains).
std::vector<model::Mapping> coalesce(std::vector<model::Mapping>);

}  // namespace stasis::resource
