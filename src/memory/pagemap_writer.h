// A pagemap being written: its head, then entries as they come.
#pragma once

#include <optional>

#include "image/directory.h"
#include "image/page_sink.h"

namespace stasis::memory {

class PagemapWriter {
 public:
  static Result<PagemapWriter> begin(image::Writer writer, uint32_t pages_id);
  /// Neighbours of one kind become one record.
  Status add(const image::PageEntry& entry);
  Status finish();

 private:
  explicit PagemapWriter(image::Writer writer) : writer_(std::move(writer)) {}
  Status write_last();

  image::Writer writer_;
  std::optional<image::PageEntry> last_;
};

}  // namespace stasis::memory
