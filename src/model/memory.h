// Address spaces: what is mapped where, not the bytes (those are in a memory::PageSource).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/types.h"

namespace stasis::model {

enum class Backing : uint8_t {
  private_anonymous,
  shared_anonymous,  ///< MAP_SHARED|MAP_ANONYMOUS, or attached by shmat(2): a SharedMemory object
  private_file,
  shared_file,
  vdso,
  vvar,      ///< also vvar_vclock
  vsyscall,  ///< never mapped by us: it is there or it is not
  aio_ring,  ///< mapped by io_setup(2): an AioContext
  io_uring,  ///< queues of the io_uring `file`, shared with the kernel, which alone chooses where they are mapped
};

/// One VMA as /proc/PID/smaps shows it.
struct Mapping {
  AddressRange range;
  uint32_t protection = 0;  ///< PROT_READ | PROT_WRITE | PROT_EXEC
  Backing backing = Backing::private_anonymous;
  ObjectId file;           ///< file-backed: an OpenDescription (regular, memfd, /dev/zero …)
  ObjectId shared_memory;  ///< shared_anonymous: a SharedMemory
  uint64_t offset = 0;     ///< bytes into the file or segment
  uint32_t map_flags =
      0;  ///< MAP_GROWSDOWN | MAP_NORESERVE | MAP_HUGETLB | (log2 of the huge page size << MAP_HUGE_SHIFT)
  bool is_heap = false;          ///< [heap]
  bool is_stack = false;         ///< [stack]
  std::set<int> advice;          ///< madvise(2) values in force: MADV_DONTFORK, MADV_HUGEPAGE, MADV_MERGEABLE …
  bool locked = false;           ///< mlock
  bool locked_on_fault = false;  ///< mlock2(MLOCK_ONFAULT)
  int protection_key = 0;
  bool accounted = false;            ///< private, and writable now or once: counts as committed memory (VM_ACCOUNT)
  bool sealed = false;               ///< mseal(2)
  bool read_only_attach = false;     ///< of a System V segment: SHM_RDONLY; mprotect(2) cannot make it writable
  std::vector<AddressRange> guards;  ///< MADV_GUARD_INSTALL, ascending
  std::string name;                  ///< PR_SET_VMA_ANON_NAME
  friend bool operator==(const Mapping&, const Mapping&) = default;
};

/// What a segment of System V shared memory has beside its bytes (shmctl(2), IPC_STAT).
struct SystemVSegment {
  int32_t id = 0, key = 0;
  uint64_t size = 0;  ///< in bytes, as shmget(2) was told
  uint32_t uid = 0, gid = 0, mode = 0;
  bool destroyed = false;        ///< goes with its last user (IPC_RMID)
  bool locked = false;           ///< SHM_LOCK
  uint32_t huge_page_order = 0;  ///< SHM_HUGETLB: log2 of the size of its pages. IPC_STAT does not tell it
  /// Restore: whether it is still on the system, and whether somebody uses it there.
  enum class Found : uint8_t { missing, unused, in_use };
  Found found = Found::missing;
  friend bool operator==(const SystemVSegment& a, const SystemVSegment& b) {
    return a.id == b.id && a.key == b.key && a.size == b.size && a.uid == b.uid && a.gid == b.gid && a.mode == b.mode &&
           a.destroyed == b.destroyed && a.locked == b.locked;
  }
};

/// A segment of MAP_SHARED|MAP_ANONYMOUS or System V memory.
struct SharedMemory {
  ObjectId id;
  uint64_t size = 0;       ///< in whole pages
  uint32_t map_flags = 0;  ///< MAP_HUGETLB …
  std::optional<SystemVSegment> system_v;
  friend bool operator==(const SharedMemory&, const SharedMemory&) = default;
};

/// struct prctl_mm_map (PR_SET_MM_MAP).
struct MemoryLayout {
  uint64_t start_code = 0, end_code = 0, start_data = 0, end_data = 0;
  uint64_t start_brk = 0, brk = 0, start_stack = 0;
  uint64_t arg_start = 0, arg_end = 0, env_start = 0, env_end = 0;
  std::vector<uint64_t> auxv;
  friend bool operator==(const MemoryLayout&, const MemoryLayout&) = default;
};

/// io_setup(2): its ring is a mapping of its own, whose address is the context's name.
struct AioContext {
  uint64_t ring = 0;      ///< where the mapping begins
  uint32_t requests = 0;  ///< as io_setup was asked
  uint32_t slots = 0;     ///< events that the ring has room for
  uint32_t head = 0, tail = 0;
  Bytes events;  ///< those between head and tail, oldest first: struct io_event
  friend bool operator==(const AioContext&, const AioContext&) = default;
};

/// MAP_DROPPABLE (Linux 6.11), a type beside MAP_SHARED and MAP_PRIVATE: pages that may go at any time.
inline constexpr uint32_t map_droppable = 0x08;

/// Present or modified pages that have to be stored, in ascending order, disjoint.
struct PageRun {
  AddressRange range;
  /// The same physical pages as the parent task has at the same addresses: after a restore they are shared again.
  bool shared_with_parent = false;
  /// They replace a file's pages (private file mappings), or their absence would be seen otherwise: zeros count.
  bool keep_zeros = false;
  friend bool operator==(const PageRun&, const PageRun&) = default;
};

struct AddressSpace {
  ObjectId id;
  MemoryLayout layout;
  ObjectId executable;                      ///< /proc/PID/exe: an OpenDescription
  int dumpable = 1;                         ///< PR_GET_DUMPABLE: 0, 1 or 2
  bool thp_disabled = false;                ///< PR_SET_THP_DISABLE
  bool merge_any = false;                   ///< PR_SET_MEMORY_MERGE
  std::optional<uint32_t> coredump_filter;  ///< core(5); missing: whatever the restored process is born with
  uint32_t membarrier_registrations = 0;    ///< MEMBARRIER_CMD_REGISTER_* commands given
  bool lock_future = false;                 ///< MCL_FUTURE
  bool lock_future_on_fault = false;
  std::vector<Mapping> mappings;
  std::vector<AioContext> aio;  ///< by address
  std::vector<PageRun> pages;
  friend bool operator==(const AddressSpace&, const AddressSpace&) = default;
};

}  // namespace stasis::model
