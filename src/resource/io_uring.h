// io_uring(7), as long as it is idle: nothing that it has been given is under way.
//
// Most of it nobody is told: how it was set up, whether requests are under way, what is registered with it. So it is
// looked at in the kernel's memory (kernel/kernel_memory.h), and refused where that cannot be.
//
// Only the kernel chooses where its queues are mapped (io_uring/memmap.c, io_uring_get_unmapped_area): a restore leaves
// it no choice (agent: map_in_place). Where the queues stand only the kernel knows, too: a restore has it do nothing as
// often as it has done something (agent: setup_io_uring).
#pragma once

#include "resource/file_room.h"

namespace stasis::resource {

/// What the agent is told (agent/abi.h, IoUringState): the sizes are of what follows, in bytes.
struct IoUringState {
  uint32_t sq_head = 0, sq_tail = 0, sq_dropped = 0, sq_flags = 0, cq_head = 0, cq_tail = 0, cq_overflow = 0,
           cq_flags = 0, sqes_size = 0, cqes_size = 0, array_size = 0, reserved = 0;
  friend bool operator==(const IoUringState&, const IoUringState&) = default;
};

struct IoUring final : model::KindValue {
  struct Buffer {
    uint64_t address = 0, size = 0;  ///< address 0: nothing is registered here
    friend bool operator==(const Buffer&, const Buffer&) = default;
  };
  uint32_t setup_flags = 0, sq_entries = 0, cq_entries = 0;
  IoUringState stands;
  Bytes sqes, cqes, sq_array;
  std::vector<Buffer> buffers;
  std::vector<ObjectId> files;  ///< 0: nothing is registered here
  ObjectId eventfd;
  bool eventfd_async = false;
  // At the dump only; not compared.
  std::vector<uint64_t> kernel_files;  ///< struct file of each of `files`
  uint64_t kernel_eventfd = 0;

  std::string_view kind() const override { return "io_uring"; }
  bool equals(const model::KindValue& other) const override;
  std::string describe() const override;
};

namespace uring {
/// IORING_SETUP_*: those that are made again.
inline constexpr uint32_t cq_size = 1 << 3, clamp = 1 << 4, attach_workers = 1 << 5, submit_all = 1 << 7,
                          cooperative = 1 << 8, task_run_flag = 1 << 9, large_entries = 1 << 10,
                          large_completions = 1 << 11, single_issuer = 1 << 12, deferred = 1 << 13, no_array = 1 << 16;
inline constexpr uint32_t known_flags = cq_size | clamp | submit_all | cooperative | task_run_flag | large_entries |
                                        large_completions | single_issuer | deferred | no_array;
inline constexpr uint64_t offset_of_entries = 0x10000000;  ///< IORING_OFF_SQES
constexpr uint64_t entry_size(uint32_t flags) { return (flags & large_entries) != 0 ? 128 : 64; }
constexpr uint64_t completion_size(uint32_t flags) { return (flags & large_completions) != 0 ? 32 : 16; }
constexpr uint64_t array_size(uint32_t flags, uint32_t entries) { return (flags & no_array) != 0 ? 0 : entries * 4; }
}  // namespace uring

/// What stands behind a descriptor; what is wrong with it goes to the diagnostics.
Result<std::shared_ptr<IoUring>> capture_io_uring(CaptureContext&, const DescriptorProbe&);
/// Once all descriptors are known: which of them are registered.
Status find_registered(CaptureContext&);
/// The io_uring with this inode, of which each has its own; nothing: none that the tree has open.
std::optional<ObjectId> find_io_uring(const CaptureContext&, dev_t device, ino_t inode);

const FileRoom& io_uring_room();

}  // namespace stasis::resource
