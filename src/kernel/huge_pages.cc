#include "kernel/huge_pages.h"

#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/statfs.h>

#include <bit>

namespace stasis::kernel {

namespace {
constexpr uint32_t smallest_order = 14, largest_order = 34;  ///< of all machines
}

uint32_t huge_page_order(int fd) {
  struct statfs filesystem{};
  if (fstatfs(fd, &filesystem) != 0 || filesystem.f_type != HUGETLBFS_MAGIC) return 0;
  return static_cast<uint32_t>(std::countr_zero(static_cast<uint64_t>(filesystem.f_bsize)));
}

uint32_t huge_page_flags(uint32_t order, uint32_t own) { return order == 0 ? 0 : own | order << MAP_HUGE_SHIFT; }

std::optional<uint32_t> huge_page_order_of(uint32_t flags, uint32_t own) {
  if (flags == 0) return 0;
  const uint32_t order = flags >> MAP_HUGE_SHIFT;
  if (flags != huge_page_flags(order, own) || order < smallest_order || order > largest_order) return std::nullopt;
  return order;
}

}  // namespace stasis::kernel
