// Pages in parent images that a checkpoint does not need any more.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "image/directory.h"

namespace stasis::memory {

struct DedupStats {
  uint64_t files = 0;  ///< of parents that were looked at
  uint64_t bytes = 0;  ///< released
};

/// Releases (FALLOC_FL_PUNCH_HOLE) what no pagemap of the directory refers to in its parents' pages files: pages that
/// newer images have, and those of memory that is gone. The parents alone cannot be restored afterwards, and say so
/// (memory/page_release.h). Of pages in blocks only whole blocks are released. What is left of encrypted parents is as
/// authentic as before: nobody reads what nobody needs (memory/check_images.h).
Result<DedupStats> release_superseded(const image::Directory&);

}  // namespace stasis::memory
