// The page server: stores what a client sends (memory/page_protocol.h). Everything that comes is hostile.
//
// At any time it holds one buffer, one open memory and what the parent images say of that. What is wrong ends the
// connection; then all that had been stored is removed, so that nobody takes a part for the whole.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "image/directory.h"
#include "memory/page_protocol.h"
#include "memory/transfer_stream.h"

namespace stasis::memory {

struct ReceivedPages {
  uint64_t memories = 0;
  uint64_t bytes = 0;  ///< of pages, as they are stored
  bool sealed = false;
};

class PageReceiver {
 public:
  /// Removes the page store of an earlier dump, and the inventory, which would vouch for it: the directory may be that
  /// of the client's other images, which are left alone.
  static Status clear(const image::Directory&);

  /// The directory must outlive it, and be clear.
  explicit PageReceiver(const image::Directory& directory);
  ~PageReceiver();
  /// Until the client says that it has sent everything, and has been told that it is stored.
  Result<ReceivedPages> receive(Stream&);

 private:
  struct Memory;
  struct File;

  Status serve(Stream&);
  Status obey(const wire::Header&, Stream&);
  Status begin(const wire::Target&);
  Status add(const wire::Header&, uint32_t flags, Stream&);
  Status store_part(const wire::Header&, Stream&);
  Status announce(const wire::Header&, Stream&);
  Status complete_current();
  Result<bool> parent_has(const wire::Target&) const;

  const image::Directory& directory_;
  std::optional<image::Directory> parent_;
  bool begun_ = false, in_blocks_ = false, closed_ = false;
  uint32_t last_pages_id_;
  std::unique_ptr<Memory> memory_;  ///< being received
  std::unique_ptr<File> file_;      ///< the same, in blocks
  Bytes buffer_;
  ReceivedPages received_;
};

}  // namespace stasis::memory
