// Where the pages of a dump go: into the directory of its other images, or to somebody else (Directory::page_store).
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/types.h"
#include "base/unique_fd.h"

namespace stasis::image {

class Directory;
class Writer;

/// pagemap_entry.flags
namespace page_flag {
inline constexpr uint32_t in_parent = 1 << 0;  ///< the parent images hold them
inline constexpr uint32_t lazy = 1 << 1;       ///< they may be sent later: if not present, they are not here yet
inline constexpr uint32_t present = 1 << 2;    ///< they are in the pages file
}  // namespace page_flag

/// Pages that follow each other and are stored alike.
struct PageEntry {
  AddressRange range;
  uint32_t flags = page_flag::present;
  bool shared_with_parent = false;
};

/// The pages of one memory, on their way. What is not finished must not be used. One call at a time.
class PageSink {
 public:
  virtual ~PageSink() = default;
  /// What the pagemap says next, addresses ascending, and what comes next in the pages file: the bytes of those entries
  /// that are present. In blocks (memory/block_file.h) the two have nothing to do with each other.
  virtual Status add(std::span<const PageEntry> entries, std::span<const iovec> bytes) = 0;
  using Content = std::function<Status(Writer&)>;
  /// An image beside them: the table of blocks.
  virtual Status store(const std::string& name, const Content& content) = 0;
  virtual Status finish() = 0;
};

/// Names of one memory's images.
struct PageImages {
  std::string suffix;     ///< "7" for task 7, "shmem-3" for a segment
  uint32_t pages_id = 0;  ///< where the store gives no other
};

class PageStore {
 public:
  virtual ~PageStore() = default;
  /// `refers_to_parent`: entries will. May be called by several threads: one that cannot be served yet waits.
  virtual Result<std::unique_ptr<PageSink>> open(const PageImages&, bool refers_to_parent) = 0;
  /// Once all sinks are finished: everything is stored, or an error says why not.
  virtual Status complete() = 0;
};

/// Writes an image of the directory into an open file that lies elsewhere (Directory::create).
Result<Writer> create_in(const Directory&, UniqueFd fd, std::string_view file);

}  // namespace stasis::image
