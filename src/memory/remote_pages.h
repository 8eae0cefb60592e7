// The page store at a page server: the dumping side.
#pragma once

#include <memory>
#include <mutex>
#include <optional>

#include "image/directory.h"
#include "image/page_sink.h"
#include "memory/page_protocol.h"
#include "memory/transfer_stream.h"

namespace stasis::memory {

/// Pages travel as they are, or in blocks where the directory compresses or encrypts: then its other images of pages
/// (pagemaps, tables of blocks) are made here, where the keys are, and travel as files.
///
/// What has been sent of tasks is listed in sent-pagemap-*.img of the directory, for the increment to come.
class RemotePages final : public image::PageStore {
 public:
  /// How the end is said: a socket that was handed to us may stay open elsewhere.
  enum class Ending : unsigned char { close, close_by_force };
  /// Makes sure that somebody answers who can store what will be sent. The directory must outlive the store.
  static Result<std::shared_ptr<RemotePages>> begin(std::unique_ptr<Stream>, const image::Directory&, Ending);

  /// One memory after the other: waits until the sink before is gone.
  Result<std::unique_ptr<image::PageSink>> open(const image::PageImages&, bool refers_to_parent) override;
  Status complete() override;

 private:
  friend class RemoteSink;
  RemotePages(std::unique_ptr<Stream> stream, const image::Directory& directory, Ending ending)
      : stream_(std::move(stream)), directory_(directory), ending_(ending) {}
  Status announce();
  Result<bool> begin_memory(const wire::Target&, bool refers_to_parent);

  std::unique_ptr<Stream> stream_;
  const image::Directory& directory_;
  Ending ending_;
  bool in_blocks_ = false;
  std::mutex busy_;
  std::optional<Error> failure_;  ///< the first: since then the server is in the middle of something
};

}  // namespace stasis::memory
