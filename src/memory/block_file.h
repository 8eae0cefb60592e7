// Pages files that are stored in blocks: compressed, encrypted or both. page-blocks-N.img says where in pages-N.img
// each block lies, so that any page can be read by itself. Offsets in pagemaps count the pages as they were.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "memory/filter/filter.h"

namespace stasis::memory {

/// A block holds this many pages, or fewer.
inline constexpr uint32_t block_pages = 16;
inline constexpr size_t block_size = block_pages * page_size;

struct Block {
  uint64_t first_page = 0;
  uint32_t pages = 0;
  uint64_t offset = 0;  ///< in the pages file
  uint32_t length = 0;

  BlockPlace place(uint64_t number) const { return {number, first_page, pages}; }
  AddressRange range() const { return {first_page * page_size, (first_page + pages) * page_size}; }  ///< of the pages
  AddressRange stored() const { return {offset, offset + length}; }                                  ///< of the file
};

/// "page-blocks-3.img".
std::string block_table_name(uint64_t pages_id);
/// Writes its records.
Status write_block_table(image::Writer&, std::span<const FilterKind* const> filters, const std::vector<Block>& blocks);

/// A pages file in blocks, open for reading.
class BlockFile {
 public:
  /// `file` is relative to the directory: "parent/pages-3.img".
  static Result<std::unique_ptr<BlockFile>> open(const image::Directory&, const std::string& file);
  /// Whether that file is stored in blocks.
  static bool is_one(const image::Directory&, const std::string& file);

  const std::string& name() const { return name_; }
  uint64_t size() const { return pages_ * page_size; }  ///< of its pages, as they were
  const std::vector<Block>& blocks() const { return blocks_; }
  /// How many bytes from `offset` on, up to `limit`, to read in one go: whole blocks, `wanted` bytes or a little more.
  uint64_t piece_length(uint64_t offset, uint64_t wanted, uint64_t limit) const;
  const std::vector<const FilterKind*>& filters() const { return filters_; }

  /// One thread's way to read it: keeps the block that was decoded last.
  class Reader {
   public:
    /// Bytes of the pages from `offset` on, inside of size().
    Status read(uint64_t offset, std::span<uint8_t> buffer);
    /// Whether a block is authentic, where it is encrypted.
    Status check(size_t index);

   private:
    friend class BlockFile;
    Reader(const BlockFile& file, Pipeline pipeline) : file_(&file), pipeline_(std::move(pipeline)) {}
    Status fetch(size_t index);  ///< into stored_
    Status decode(size_t index, std::span<uint8_t> into);
    std::string name_of(size_t index) const;

    const BlockFile* file_;
    Pipeline pipeline_;
    Bytes stored_, decoded_;
    size_t known_ = SIZE_MAX;  ///< the block in decoded_
  };
  /// The file must outlive it.
  Result<Reader> reader() const;

 private:
  BlockFile(image::Directory directory, std::string name) : directory_(std::move(directory)), name_(std::move(name)) {}
  Status load(uint64_t pages_id);
  Status add(const Block& block, const std::string& where);

  image::Directory directory_;
  std::string name_, base_name_;
  std::unique_ptr<image::FileBytes> bytes_;  ///< as they are stored
  uint64_t pages_ = 0;
  uint32_t largest_pages_ = 0;  ///< of a block
  std::vector<const FilterKind*> filters_;
  std::vector<Block> blocks_;
};

}  // namespace stasis::memory
