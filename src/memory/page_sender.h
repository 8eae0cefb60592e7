// Pages of a checkpoint for those who ask for them over a stream, in any order: command GET of memory/page_protocol.h.
#pragma once

#include <map>
#include <memory>

#include "image/directory.h"
#include "memory/page_protocol.h"
#include "memory/pages.h"
#include "memory/transfer_stream.h"

namespace stasis::memory {

/// The side that has them.
class PageSender {
 public:
  /// The directory must outlive it.
  explicit PageSender(const image::Directory& directory) : directory_(directory) {}
  /// Until the client says that it needs no more.
  Status serve(Stream&);

 private:
  Status give(const wire::Header&, Stream&);
  Result<ImagePages*> pages_of(uint64_t pid);

  const image::Directory& directory_;
  std::map<uint64_t, std::unique_ptr<ImagePages>> open_;
};

// -- the side that asks

/// Pages of task `pid` from `address` on, as many as one answer has; 0: they are not stored there, and so are zeros.
/// The buffer is a multiple of the page size.
Result<size_t> fetch_pages(Stream&, uint64_t pid, uint64_t address, std::span<uint8_t> buffer);
/// Says that no more will be asked for.
Status end_fetching(Stream&);

}  // namespace stasis::memory
