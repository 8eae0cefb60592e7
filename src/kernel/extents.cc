#include "kernel/extents.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace stasis::kernel {

Result<std::vector<Extent>> data_extents(int fd, uint64_t size, const std::string& subject) {
  std::vector<Extent> extents;
  for (uint64_t at = 0; at < size;) {
    const off_t data = lseek(fd, static_cast<off_t>(at), SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;  // a hole to the end
    if (data < 0 && errno == EINVAL) return std::vector<Extent>{{0, size}};
    if (data < 0) return fail_errno("find data", subject);
    if (static_cast<uint64_t>(data) >= size) break;
    const off_t hole = lseek(fd, data, SEEK_HOLE);
    if (hole < 0) return fail_errno("find holes", subject);
    extents.push_back({static_cast<uint64_t>(data), std::min(static_cast<uint64_t>(hole), size)});
    at = extents.back().end;
  }
  return extents;
}

Result<std::vector<AddressRange>> data_pages(int fd, uint64_t size, const std::string& subject) {
  std::vector<AddressRange> pages;
  for (const auto& [begin, end] : TRY(data_extents(fd, size, subject))) {
    const AddressRange whole{begin / page_size * page_size, (end + page_size - 1) / page_size * page_size};
    if (!pages.empty() && whole.begin <= pages.back().end)
      pages.back().end = whole.end;
    else
      pages.push_back(whole);
  }
  return pages;
}

}  // namespace stasis::kernel
