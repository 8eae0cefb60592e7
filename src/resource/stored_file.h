// Files in memory whose pages are stored (pagemap-shmem-N.img): written at the dump, and made again at the restore as a
// passing file (memfd_create(2)), for what is made from it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "image/file_records.h"
#include "memory/pages.h"
#include "plan/contributor.h"

namespace stasis::resource {

/// Stores the data of the file's first `size` bytes under the number of the object, compared with the parent images.
Status store_file(image::FileRecords&, uint32_t number, int fd, uint64_t size, const std::string& subject);

struct StoredFile {
  std::string purpose, name;
  uint64_t size = 0;
  uint32_t huge_page_order = 0;  ///< of one of huge pages (kernel/huge_pages.h): log2 of their size
  const std::vector<memory::StoredRun>& stored;
};

/// Commands that make it under the passing number `file`, which has to be closed; `pages` is free meanwhile. What is
/// stored nowhere is a hole. Files of huge pages cannot be written to: stasis fills them through a mapping.
void add_stored_file(const StoredFile&, int file, int pages, plan::Sink&);

}  // namespace stasis::resource
