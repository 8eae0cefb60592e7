// What a checkpoint needs of the pages files of its chain.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "image/directory.h"
#include "memory/block_file.h"

namespace stasis::memory {

/// By pages file ("parent/pages-1.img") the ranges of it, as offsets of the pages as they were: ascending, disjoint.
using NeededPages = std::map<std::string, std::vector<AddressRange>>;

/// What the pagemaps of the directory refer to, here and in its parents.
Result<NeededPages> needed_pages(const image::Directory&);

/// Whether anything of a block is needed.
bool is_needed(const std::vector<AddressRange>& needed, const Block& block);

/// Where in the file that is which is needed: whole blocks, if it is stored in blocks. Ascending, disjoint.
Result<std::vector<AddressRange>> stored_ranges(const image::Directory&, const std::string& file,
                                                const std::vector<AddressRange>& needed);

}  // namespace stasis::memory
