// PAGEMAP_SCAN and /proc/PID/pagemap: Documentation/admin-guide/mm/pagemap.rst.
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "kernel/userfaultfd.h"

namespace stasis::kernel {
namespace {

/// include/uapi/linux/fs.h since 6.7; older headers lack it.
struct ScanArguments {
  uint64_t size, flags, start, end, walk_end, vec, vec_length, max_pages;
  uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
struct ScanRegion {
  uint64_t start, end, categories;
};
constexpr unsigned long pagemap_scan = _IOWR('f', 16, ScanArguments);
constexpr uint64_t protect_matching = 1 << 0;  ///< PM_SCAN_WP_MATCHING

/// The categories that the words of /proc/PID/pagemap can tell.
uint64_t categories_of(uint64_t word) {
  uint64_t categories = 0;
  if (word >> 63 & 1) categories |= page_is_present;
  if (word >> 62 & 1) categories |= page_is_swapped;
  if (word >> 61 & 1) categories |= page_is_file;
  if (word >> 55 & 1) categories |= page_is_soft_dirty;
  if (word >> 58 & 1) categories |= page_is_guard;
  return categories;
}

Result<std::vector<PageScan>> scan_by_words(int pagemap_fd, AddressRange where, uint64_t required, uint64_t any_of,
                                            uint64_t inverted, uint64_t report) {
  constexpr uint64_t tellable = page_is_present | page_is_swapped | page_is_file | page_is_soft_dirty | page_is_guard;
  if (((required | any_of) & ~tellable) != 0) {
    return fail(
        Error::unsupported("scan pages", "this kernel has no PAGEMAP_SCAN and /proc/PID/pagemap does not tell enough"));
  }
  std::vector<PageScan> scans;
  constexpr uint64_t batch = uint64_t{64} << 20;
  for (uint64_t at = where.begin; at < where.end; at += batch) {
    const AddressRange part{at, std::min(at + batch, where.end)};
    const auto words = TRY(read_pagemap(pagemap_fd, part));
    for (size_t index = 0; index < words.size(); ++index) {
      const uint64_t categories = categories_of(words[index]);
      const uint64_t seen = categories ^ inverted;
      if ((seen & required) != required || (any_of != 0 && (seen & any_of) == 0)) continue;
      const uint64_t begin = part.begin + index * page_size;
      append(scans, {{begin, begin + page_size}, categories & report});
    }
  }
  return scans;
}

Result<std::vector<PageScan>> scan(int pagemap_fd, uint64_t flags, AddressRange where, uint64_t required,
                                   uint64_t any_of, uint64_t inverted, uint64_t report) {
  std::vector<PageScan> scans;
  std::vector<ScanRegion> regions(512);
  for (uint64_t at = where.begin; at < where.end;) {
    ScanArguments arguments{
        sizeof(ScanArguments), flags, at,       where.end, 0,      reinterpret_cast<uint64_t>(regions.data()),
        regions.size(),        0,     inverted, required,  any_of, report};
    const int count = ioctl(pagemap_fd, pagemap_scan, &arguments);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == ENOTTY)
      return fail(Error::unsupported("PAGEMAP_SCAN", "this kernel does not have it (Linux 6.7)"));
    if (count < 0 && errno == ESRCH) return fail(Error::gone("PAGEMAP_SCAN", "the task of a pagemap"));
    if (count < 0) return fail_errno("PAGEMAP_SCAN");
    for (int index = 0; index < count; ++index) {
      append(scans, {{regions[index].start, regions[index].end}, regions[index].categories});
    }
    // The walk ends early only because the vector is full; a walk that makes no headway would never end.
    if (arguments.walk_end <= at) return fail(Error::internal("PAGEMAP_SCAN", "the walk made no progress"));
    at = arguments.walk_end;
  }
  return scans;
}

}  // namespace

void append(std::vector<PageScan>& scans, PageScan next) {
  if (!scans.empty() && scans.back().range.end == next.range.begin && scans.back().categories == next.categories) {
    scans.back().range.end = next.range.end;
  } else {
    scans.push_back(next);
  }
}

Result<std::vector<PageScan>> scan_pages(int pagemap_fd, AddressRange where, uint64_t required, uint64_t any_of,
                                         uint64_t inverted, uint64_t report) {
  auto scans = scan(pagemap_fd, 0, where, required, any_of, inverted, report);
  if (scans || scans.error().code() != ErrorCode::unsupported) return scans;
  return scan_by_words(pagemap_fd, where, required, any_of, inverted, report);
}

Result<std::vector<PageScan>> scan_and_protect(int pagemap_fd, AddressRange where, uint64_t required, uint64_t any_of,
                                               uint64_t inverted, uint64_t report) {
  return scan(pagemap_fd, protect_matching, where, required, any_of, inverted, report);
}

Result<std::vector<uint64_t>> read_pagemap(int pagemap_fd, AddressRange where) {
  std::vector<uint64_t> words((where.end - where.begin) / page_size);
  const off_t offset = static_cast<off_t>(where.begin / page_size * sizeof(uint64_t));
  auto* first = reinterpret_cast<uint8_t*>(words.data());
  const size_t size = words.size() * sizeof(uint64_t);
  size_t done = 0;
  while (done < size) {
    const ssize_t got = pread(pagemap_fd, first + done, size - done, offset + static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("read /proc/PID/pagemap");
    if (got == 0) break;  // beyond the end of user space (vsyscall): nothing is present there
    done += static_cast<size_t>(got);
  }
  return words;
}

}  // namespace stasis::kernel
