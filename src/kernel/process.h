// pidfds, kcmp, remote memory, pagemaps: looking at a process from outside.
#pragma once

#include <sys/types.h>

#include <compare>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "base/unique_fd.h"

namespace stasis::kernel {

Result<UniqueFd> pidfd_open(pid_t pid);
Result<UniqueFd> pidfd_getfd(int pidfd, int fd);
Status pidfd_kill(int pidfd, int signal);

enum class KcmpType { file, vm, files, fs, sighand, io, sysvsem };
/// Order of two kernel objects: equal means the same object. For KcmpType::file a and b are descriptor numbers.
Result<std::strong_ordering> kcmp(pid_t pid1, pid_t pid2, KcmpType type, int a = 0, int b = 0);

/// process_vm_readv / writev, complete or an error. `write` goes through /proc/PID/mem: protections do not matter.
Status read_memory(pid_t pid, RemoteAddress from, std::span<uint8_t> into);
Status write_memory(pid_t pid, RemoteAddress to, ByteView bytes);
/// The same for memory that the task may write itself: one call instead of three.
Status write_own_memory(pid_t pid, RemoteAddress to, ByteView bytes);

/// PAGEMAP_SCAN (Linux 6.7; Documentation/admin-guide/mm/pagemap.rst), falling back to reading /proc/PID/pagemap.
/// PAGE_IS_*: include/uapi/linux/fs.h.
inline constexpr uint64_t page_is_wp_allowed = 1 << 0, page_is_written = 1 << 1, page_is_file = 1 << 2,
                          page_is_present = 1 << 3, page_is_swapped = 1 << 4, page_is_zero_frame = 1 << 5,
                          page_is_huge = 1 << 6, page_is_soft_dirty = 1 << 7, page_is_guard = 1 << 8;
struct PageScan {
  AddressRange range;
  uint64_t categories = 0;  ///< PAGE_IS_*
};
/// Ranges in `where` whose pages have all of `required` and any of `any_of` set (PAGE_IS_* masks, inverted by
/// `inverted`).
Result<std::vector<PageScan>> scan_pages(int pagemap_fd, AddressRange where, uint64_t required, uint64_t any_of,
                                         uint64_t inverted, uint64_t report);
/// Raw /proc/PID/pagemap words (PFNs need CAP_SYS_ADMIN).
Result<std::vector<uint64_t>> read_pagemap(int pagemap_fd, AddressRange where);

}  // namespace stasis::kernel
