// Where a file holds data (lseek(2), SEEK_DATA and SEEK_HOLE).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/types.h"

namespace stasis::kernel {

struct Extent {
  uint64_t begin = 0, end = 0;  ///< bytes of the file
};

/// The data of the file's first `size` bytes, ascending; what lies between is holes. A file system that does not tell
/// (EINVAL) has all of it as data. `subject` is for the error. The descriptor's position changes.
Result<std::vector<Extent>> data_extents(int fd, uint64_t size, const std::string& subject);

/// The same in whole pages, as memory is saved.
Result<std::vector<AddressRange>> data_pages(int fd, uint64_t size, const std::string& subject);

}  // namespace stasis::kernel
