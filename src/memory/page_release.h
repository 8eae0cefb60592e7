// Parts of pages files that are given back to the file system: nobody will read them any more.
#pragma once

#include <string>

#include "base/result.h"
#include "base/types.h"
#include "base/unique_fd.h"
#include "image/directory.h"

namespace stasis::memory {

/// Stands in a directory whose pages files lack pages that its own pagemaps speak of: they alone are no checkpoint any
/// more. Where there was a page of plain images there are zeros, which nobody could tell from a page of zeros. The
/// pages may have been those of its parents: it has to be put into each directory on the way to them.
inline constexpr const char* released_marker = "pages-released.img";
/// Puts it there. Before the first page is released.
Status mark_released(const image::Directory&);

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
  PageRelease(UniqueFd fd, uint64_t size, std::string name) : fd_(std::move(fd)), size_(size), name_(std::move(name)) {}
  Status release_if_empty(AddressRange page) const;

  UniqueFd fd_;
  uint64_t size_;
  std::string name_;
};

}  // namespace stasis::memory
