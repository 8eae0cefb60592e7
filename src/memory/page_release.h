// Parts of pages files that are given back to the file system: nobody will read them any more.
#pragma once

#include <string>

#include "base/result.h"
#include "base/types.h"
#include "base/unique_fd.h"
#include "image/directory.h"

namespace stasis::memory {

/// Stands in a directory whose pages files lack pages that its own pagemaps speak of: they alone are no checkpoint any
/// more. Where there was a page of plain images there are zeros, which nobody could tell from a page of zeros.
inline constexpr const char* released_marker = "pages-released.img";

/// A pages file, open to be punched (FALLOC_FL_PUNCH_HOLE): it keeps its length.
class PageRelease {
 public:
  /// `file` is relative to the directory: "parent/pages-3.img". Nothing is changed yet.
  static Result<PageRelease> open(const image::Directory&, const std::string& file);

  /// Whether the file system can do it.
  Status probe() const;
  /// Gives back what is in the range. A file system only gives back whole pages of its own: of those that lie across
  /// an end of the range it does so once nothing but zeros is left in them.
  Status release(AddressRange range);
  /// On disk, whatever its length.
  Result<uint64_t> bytes_used() const;
  uint64_t size() const { return size_; }

 private:
  PageRelease(UniqueFd fd, uint64_t size, image::Directory directory, std::string name)
      : fd_(std::move(fd)), size_(size), directory_(std::move(directory)), name_(std::move(name)) {}
  Status release_if_empty(AddressRange page) const;

  UniqueFd fd_;
  uint64_t size_;
  image::Directory directory_;  ///< that holds it
  std::string name_;
  bool marked_ = false;
};

}  // namespace stasis::memory
