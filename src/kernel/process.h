// pidfds, kcmp, remote memory, pagemaps: looking at a process from outside.
#pragma once

#include <sys/types.h>

#include <compare>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "base/unique_fd.h"

namespace stasis::kernel {

Result<UniqueFd> pidfd_open(pid_t pid);
/// To take descriptors through: of any thread that lives. Those beside the leader need PIDFD_THREAD (Linux 6.9).
Result<UniqueFd> pidfd_open_thread(pid_t tid);
Result<UniqueFd> pidfd_getfd(int pidfd, int fd);
Status pidfd_kill(int pidfd, int signal);

enum class KcmpType { file, vm, files, fs, sighand, io, sysvsem };
/// Order of two kernel objects: equal means the same object. For KcmpType::file a and b are descriptor numbers.
Result<std::strong_ordering> kcmp(pid_t pid1, pid_t pid2, KcmpType type, int a = 0, int b = 0);
/// One target of an epoll, as kcmp(2) finds it: `nth` of those that were added under this number, in the order of
/// fdinfo.
struct EpollSlot {
  int epoll = -1, target = -1;
  uint32_t nth = 0;
};
/// Order of the open file description behind a descriptor of `pid` to that of a target of an epoll of `holder`. The
/// kernel looks through the targets one by one.
Result<std::strong_ordering> kcmp_epoll(pid_t pid, int fd, pid_t holder, const EpollSlot&);
/// Objects in the kernel's own order, which kcmp(2) tells: whether one is known takes the logarithm of their number.
class OrderedObjects {
 public:
  /// The first that is the same object as the candidate: a known one, or the candidate itself, which is known then.
  /// `compare(a, b)` gives a Result<std::strong_ordering>.
  template <typename Compare>
  Result<size_t> first_like(size_t candidate, Compare compare) {
    const auto [place, known] = TRY(place_of([&](size_t other) { return compare(candidate, other); }));
    if (known) return known_[place];
    known_.insert(known_.begin() + static_cast<ptrdiff_t>(place), candidate);
    return candidate;
  }
  /// The known one that is the same object as what `compare(known)` gives the order of to it, if there is one.
  template <typename Compare>
  Result<std::optional<size_t>> find(Compare compare) const {
    const auto [place, known] = TRY(place_of(compare));
    if (!known) return std::nullopt;
    return known_[place];
  }

 private:
  struct Place {
    size_t index;
    bool known;
  };
  template <typename Compare>
  Result<Place> place_of(Compare compare) const {
    size_t low = 0, high = known_.size();
    while (low < high) {
      const size_t middle = (low + high) / 2;
      const std::strong_ordering order = TRY(compare(known_[middle]));
      if (order == std::strong_ordering::equal) return Place{middle, true};
      (order == std::strong_ordering::less ? high : low) = order == std::strong_ordering::less ? middle : middle + 1;
    }
    return Place{low, false};
  }

  std::vector<size_t> known_;
};

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
/// A range that goes on where the last one ends, with the same categories, becomes part of it.
void append(std::vector<PageScan>&, PageScan next);
/// Ranges in `where` whose pages have all of `required` and any of `any_of` set (PAGE_IS_* masks, inverted by
/// `inverted`).
Result<std::vector<PageScan>> scan_pages(int pagemap_fd, AddressRange where, uint64_t required, uint64_t any_of,
                                         uint64_t inverted, uint64_t report);
/// Raw /proc/PID/pagemap words (PFNs need CAP_SYS_ADMIN), and bits of them.
inline constexpr uint64_t word_exclusively_mapped = uint64_t{1} << 56, word_of_file = uint64_t{1} << 61,
                          word_present = uint64_t{1} << 63;
Result<std::vector<uint64_t>> read_pagemap(int pagemap_fd, AddressRange where);

}  // namespace stasis::kernel
