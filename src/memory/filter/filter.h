// What blocks of pages go through on their way into a pages file, and back: compression, then encryption.
//
// A filter is one file in this folder and one line of the registry. It sees one block at a time, keeps nothing from one
// to the next, and is used by one thread: every worker makes its own.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "blocks.pb.h"
#include "image/directory.h"

namespace stasis::memory {

/// Where a block stands in its file.
struct BlockPlace {
  uint64_t number = 0;
  uint64_t first_page = 0;
  uint32_t pages = 0;
};

class Filter {
 public:
  virtual ~Filter() = default;
  /// The most that `size` bytes can become.
  virtual size_t bound(size_t size) const = 0;
  /// Fills `out` (of bound(in.size()) bytes); the bytes it has used.
  virtual Result<size_t> encode(const BlockPlace&, ByteView in, std::span<uint8_t> out) = 0;
  /// Undoes encode(). What does not fit into `out` is an error: all of `in` is hostile.
  virtual Result<size_t> decode(const BlockPlace&, ByteView in, std::span<uint8_t> out) = 0;
  /// Whether `in` is what was written, where that can be told without decoding it.
  virtual Status check(const BlockPlace&, ByteView) { return {}; }
};

/// What a filter is made for.
struct FilterContext {
  const image::Directory& directory;
  std::string file;  ///< "pages-1.img"
  int level = 0;     ///< of compression, for encoding
};

struct FilterKind {
  std::string_view name;
  uint32_t version = 1;    ///< of its blocks: a reader refuses those it does not know
  bool compresses = true;  ///< a block that does not become smaller stays as it is
  int lowest_level = 0, highest_level = 0, usual_level = 0;
  Result<std::unique_ptr<Filter>> (*make)(const FilterContext&) = nullptr;
};

std::span<const FilterKind* const> filter_kinds();
const FilterKind* find_filter(std::string_view name);
/// The filters that an image names; those that are unknown, or of another version, are refused.
Result<std::vector<const FilterKind*>> known_filters(
    const google::protobuf::RepeatedPtrField<page_filter_entry>& entries, const std::string& where);

/// "zstd", "zstd:19", "lz4" → what a directory is told to do with its pages.
Result<image::Compression> parse_compression(std::string_view);

/// One worker's filters: at most one that compresses, then at most one that seals.
class Pipeline {
 public:
  static Result<Pipeline> make(std::span<const FilterKind* const>, const FilterContext&, size_t block_size);
  size_t bound(size_t size) const;
  /// The stored form of a block, in `out` (of bound() bytes); its length.
  Result<size_t> encode(const BlockPlace&, ByteView block, std::span<uint8_t> out);
  /// Whether it is authentic, where it is sealed.
  Status check(const BlockPlace& place, ByteView stored) { return sealer_ ? sealer_->check(place, stored) : Status{}; }
  /// `block` is filled exactly.
  Status decode(const BlockPlace&, ByteView stored, std::span<uint8_t> block);

 private:
  std::unique_ptr<Filter> compressor_, sealer_;
  Bytes between_;
};

/// The filters of what is written into a directory.
std::vector<const FilterKind*> filters_of(const image::Directory&);

}  // namespace stasis::memory
