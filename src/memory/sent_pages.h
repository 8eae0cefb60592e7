// sent-pagemap-N.img: which pages of task N a page server has been sent (memory/remote_pages.h), so that the increment
// to come knows what it can refer to.
#pragma once

#include <string>
#include <vector>

#include "memory/pages.h"

namespace stasis::memory {

inline constexpr const char* sent_prefix = "sent-pagemap-";

/// Which pages the server has, here or in the parent images; where they lie is its own affair.
Result<std::vector<StoredRun>> read_sent_pagemap(const image::Directory&, const std::string& suffix);
/// The suffixes of all such lists in the directory.
Result<std::vector<std::string>> list_sent_pagemaps(const image::Directory&);

}  // namespace stasis::memory
