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

/// PAGEMAP_SCAN (Linux 6.7; Documentation/admin-guide/mm/pagemap.rst), falling back to reading /proc/PID/pagemap.
enum class PageState : uint8_t { present_or_swapped, file_backed_clean };
struct PageScan {
  AddressRange range;
  uint64_t categories = 0;               ///< PAGE_IS_*
};
/// Ranges in `where` whose pages have all of `required` and any of `any_of` set (PAGE_IS_* masks, inverted by `inverted`).
Result<std::vector<PageScan>> scan_pages(int pagemap_fd, AddressRange where, uint64_t required, uint64_t any_of,
                                         uint64_t inverted, uint64_t report);
/// Raw /proc/PID/pagemap words (PFNs need CAP_SYS_ADMIN).
Result<std::vector<uint64_t>> read_pagemap(int pagemap_fd, AddressRange where);

}  // namespace stasis::kernel
