// The page store of a directory: pagemap-*.img and pages-N.img in it.
#pragma once

#include "image/directory.h"
#include "image/page_sink.h"

namespace stasis::memory {

class LocalPages final : public image::PageStore {
 public:
  /// Of files that are there already.
  enum class Existing : unsigned char { replace, refuse };
  /// The directory must outlive the store.
  explicit LocalPages(const image::Directory& directory, Existing existing = Existing::replace)
      : directory_(directory), existing_(existing) {}
  Result<std::unique_ptr<image::PageSink>> open(const image::PageImages&, bool refers_to_parent) override;
  Status complete() override { return {}; }

 private:
  const image::Directory& directory_;
  Existing existing_;
};

/// A new file in the directory for raw bytes; `existing` as LocalPages has it.
Result<UniqueFd> create_raw(const image::Directory&, const std::string& name, LocalPages::Existing existing);

/// All bytes of the parts, at an offset of a file. Disks that are full are spoken of as such. The parts are used up.
Status write_at(int fd, std::span<iovec> parts, uint64_t offset, const std::string& name);

}  // namespace stasis::memory
