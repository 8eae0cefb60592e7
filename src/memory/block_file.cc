#include "memory/block_file.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "base/checked.h"
#include "blocks.pb.h"
#include "image/names.h"

namespace stasis::memory {
namespace {

constexpr uint32_t table_version = 1;
constexpr uint32_t largest_block_pages = 256;   ///< that a reader takes: a worker's buffers stay below some MiB
constexpr size_t blocks_per_record = 16 << 10;  ///< records are bounded (image::record_limit)

std::unexpected<Error> reject(const std::string& where, std::string cause) {
  return fail(Error::invalid("read the table of page blocks", std::move(cause), where));
}

struct Named {
  std::string inner;  ///< "parent/"
  std::string base;   ///< "pages-3.img"
  std::optional<uint64_t> pages_id;
};

Named parts_of(const std::string& file) {
  const size_t slash = file.rfind('/');
  Named named;
  named.base = slash == std::string::npos ? file : file.substr(slash + 1);
  named.inner = file.substr(0, file.size() - named.base.size());
  if (const auto parsed = image::parse_name(named.base); parsed && parsed->kind->pattern == "pages-{}")
    named.pages_id = parsed->id;
  return named;
}

}  // namespace

std::string block_table_name(uint64_t pages_id) { return image::file_name("page-blocks-{}", pages_id); }

Status write_block_table(image::Writer& writer, std::span<const FilterKind* const> filters,
                         const std::vector<Block>& blocks) {
  page_blocks_head head;
  head.set_version(table_version);
  head.set_block_pages(block_pages);
  for (const FilterKind* kind : filters) {
    auto& filter = *head.add_filters();
    filter.set_name(std::string(kind->name));
    filter.set_version(kind->version);
  }
  head.set_pages(blocks.empty() ? 0 : blocks.back().first_page + blocks.back().pages);
  TRY(writer.append(head));
  page_blocks_entry entry;
  for (size_t i = 0; i < blocks.size(); ++i) {
    entry.add_pages(blocks[i].pages);
    entry.add_offset(blocks[i].offset);
    entry.add_length(blocks[i].length);
    if (i + 1 < blocks.size() && (i + 1) % blocks_per_record != 0) continue;
    TRY(writer.append(entry));
    entry.Clear();
  }
  return {};
}

bool BlockFile::is_one(const image::Directory& directory, const std::string& file) {
  const Named named = parts_of(file);
  return named.pages_id && directory.has(named.inner + block_table_name(*named.pages_id));
}

Result<std::unique_ptr<BlockFile>> BlockFile::open(const image::Directory& directory, const std::string& file) {
  const Named named = parts_of(file);
  if (!named.pages_id) return fail(Error::invalid("read pages", "not the name of a pages file", file));
  std::unique_ptr<BlockFile> opened(new BlockFile(TRY(directory.holding(file)), file));
  opened->base_name_ = named.base;
  opened->bytes_ = TRY(opened->directory_.bytes_of(named.base));
  TRY(opened->load(*named.pages_id));
  return opened;
}

Status BlockFile::load(uint64_t pages_id) {
  auto reader = TRY(directory_.read(block_table_name(pages_id)));
  page_blocks_head head;
  if (!TRY(reader.next(head))) return reject(reader.name(), "it is empty: the head is missing");
  if (head.version() != table_version)
    return fail(Error::unsupported(
        "read the table of page blocks",
        fmt::format("field version: {}, but only version {} can be read", head.version(), table_version),
        reader.name()));
  if (head.block_pages() == 0 || head.block_pages() > largest_block_pages)
    return reject(reader.name(), fmt::format("field block_pages: blocks of {} pages", head.block_pages()));
  filters_ = TRY(known_filters(head.filters(), reader.name()));
  const bool sealed = std::ranges::any_of(filters_, [](const FilterKind* kind) { return !kind->compresses; });
  if (sealed != (directory_.encryption() != nullptr))
    return reject(reader.name(), "field filters: pages are encrypted where all else is, and nowhere else");
  largest_pages_ = head.block_pages();
  for (page_blocks_entry entry; TRY(reader.next(entry));) {
    if (entry.pages_size() != entry.offset_size() || entry.pages_size() != entry.length_size())
      return reject(reader.where(), "its lists are not of one length");
    for (int i = 0; i < entry.pages_size(); ++i)
      TRY(add({pages_, entry.pages(i), entry.offset(i), entry.length(i)}, reader.where()));
  }
  if (pages_ != head.pages())
    return reject(reader.name(), fmt::format("field pages: {}, but its blocks have {}", head.pages(), pages_));
  return {};
}

Status BlockFile::add(const Block& block, const std::string& where) {
  constexpr uint32_t overhead = 256;  // no filter adds more to a block that does not shrink
  if (block.pages == 0 || block.pages > largest_pages_)
    return reject(where, fmt::format("field pages: block {} of {} pages", blocks_.size(), block.pages));
  if (block.length == 0 || block.length > block.pages * page_size + overhead)
    return reject(where, fmt::format("field length: {} bytes for {} pages are impossible", block.length, block.pages));
  const auto end = checked_add(block.offset, block.length);
  if (!end || *end > bytes_->size()) {
    return reject(name_, fmt::format("it has {} bytes, but block {} is said to be at {}, {} bytes long", bytes_->size(),
                                     blocks_.size(), block.offset, block.length));
  }
  pages_ += block.pages;
  blocks_.push_back(block);
  return {};
}

Result<BlockFile::Reader> BlockFile::reader() const {
  auto pipeline = TRY(Pipeline::make(filters_, {directory_, base_name_}, largest_pages_ * page_size));
  return Reader(*this, std::move(pipeline));
}

std::string BlockFile::Reader::name_of(size_t index) const { return fmt::format("{}, block {}", file_->name_, index); }

Status BlockFile::Reader::fetch(size_t index) {
  const Block& block = file_->blocks_[index];
  stored_.resize(block.length);
  if (TRY_IN("read " + name_of(index), file_->bytes_->read(block.offset, stored_))) return {};
  return fail(Error::invalid("read pages", "the file became shorter while it was read", name_of(index)));
}

Status BlockFile::Reader::decode(size_t index, std::span<uint8_t> into) {
  TRY(fetch(index));
  auto decoded = pipeline_.decode(file_->blocks_[index].place(index), stored_, into);
  return decoded ? decoded : fail(std::move(decoded).error().about(name_of(index)));
}

Status BlockFile::Reader::check(size_t index) {
  TRY(fetch(index));
  auto checked = pipeline_.check(file_->blocks_[index].place(index), stored_);
  return checked ? checked : fail(std::move(checked).error().about(name_of(index)));
}

namespace {
uint64_t end_of(const Block& block) { return block.range().end; }
}  // namespace

uint64_t BlockFile::piece_length(uint64_t offset, uint64_t wanted, uint64_t limit) const {
  if (limit <= wanted) return limit;
  const auto block = std::ranges::lower_bound(blocks_, offset + wanted, {}, end_of);
  return block == blocks_.end() ? limit : std::min(limit, end_of(*block) - offset);
}

Status BlockFile::Reader::read(uint64_t offset, std::span<uint8_t> buffer) {
  if (offset > file_->size() || buffer.size() > file_->size() - offset)
    return fail(Error::invalid("read pages", fmt::format("{} bytes at {} are beyond its pages", buffer.size(), offset),
                               file_->name_));
  const auto& blocks = file_->blocks_;
  auto block = std::ranges::upper_bound(blocks, offset, {}, end_of);
  for (; !buffer.empty(); ++block) {
    const auto index = static_cast<size_t>(block - blocks.begin());
    const uint64_t skip = offset - block->first_page * page_size, size = uint64_t{block->pages} * page_size;
    const uint64_t count = std::min<uint64_t>(size - skip, buffer.size());
    if (count == size) {  // all of it is wanted: no detour
      TRY(decode(index, buffer.first(size)));
    } else {
      if (known_ != index) {
        known_ = SIZE_MAX;
        decoded_.resize(size);
        TRY(decode(index, decoded_));
        known_ = index;
      }
      std::memcpy(buffer.data(), decoded_.data() + skip, count);
    }
    buffer = buffer.subspan(count);
    offset += count;
  }
  return {};
}

}  // namespace stasis::memory
