// Files of hugetlbfs (Documentation/admin-guide/mm/hugetlbpage.rst), which is where memory with MAP_HUGETLB,
// MFD_HUGETLB and SHM_HUGETLB is. They can be read and mapped, but not written to by write(2).
#pragma once

#include <cstdint>
#include <optional>

namespace stasis::kernel {

/// The binary logarithm of the size of its pages; 0: the file is elsewhere.
uint32_t huge_page_order(int fd);

/// What is asked for: `own`, the flag of the call (MFD_HUGETLB, SHM_HUGETLB), and the size in the bits that all such
/// calls have for it (include/uapi/asm-generic/hugetlb_encode.h). 0 for order 0.
uint32_t huge_page_flags(uint32_t order, uint32_t own);
/// The other way round. Nothing: they are no such flags, or leave the size to the system.
std::optional<uint32_t> huge_page_order_of(uint32_t flags, uint32_t own);

}  // namespace stasis::kernel
