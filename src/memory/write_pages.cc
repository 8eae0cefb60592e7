// The page store: pagemap-*.img says which pages lie in pages-N.img, in file order.
//
// Pages are copied in chunks that fit into a core's second-level cache, so that the copy into the page cache reads what
// the copy out of the task has just put there. Large memories are copied by two threads: while one waits for its pages
// the other writes. Chunks are written in order: the file has no holes, and a stream can take its place. (The kernel
// would let only one thread write into a file anyway, inode_lock.)
//
// Where pages are compressed or encrypted, each chunk makes blocks of its own. Their place among the pages is known
// before they are encoded, for encryption binds them to it; where they lie in the file, which does not follow that
// order, only afterwards.
#include <algorithm>
#include <cstring>
#include <condition_variable>
#include <optional>

#include <fmt/format.h>

#include "base/parallel.h"
#include "image/encryption.h"
#include "image/names.h"
#include "image/page_sink.h"
#include "memory/block_file.h"
#include "memory/local_pages.h"
#include "memory/page_scan.h"
#include "memory/pages.h"

namespace stasis::memory {
namespace {

/// Of a little memory each thread takes little at a time, so that all are done at the same time.
uint64_t chunk_size_for(uint64_t total) {
  constexpr uint64_t usual = 1 << 20, small = 1 << 18;
  return std::min(total < 32 * usual ? small : usual, total);
}

using image::PageEntry;

/// What a pagemap only tells of, in order.
std::vector<PageEntry> entries_without_bytes(std::span<const model::PageRun> in_parent,
                                             std::span<const model::PageRun> elsewhere) {
  std::vector<PageEntry> entries;
  for (const auto& run : in_parent) entries.push_back({run.range, image::page_flag::in_parent, run.shared_with_parent});
  const auto middle = static_cast<ptrdiff_t>(entries.size());
  for (const auto& run : elsewhere) entries.push_back({run.range, image::page_flag::lazy, run.shared_with_parent});
  std::ranges::inplace_merge(entries, entries.begin() + middle, {},
                             [](const PageEntry& entry) { return entry.range.begin; });
  return entries;
}

void append(std::vector<PageEntry>& entries, const PageEntry& next) {
  if (!entries.empty() && entries.back().range.end == next.range.begin &&
      entries.back().shared_with_parent == next.shared_with_parent) {
    entries.back().range.end = next.range.end;
  } else {
    entries.push_back(next);
  }
}

/// One worker's share: up to chunk_size_ bytes from consecutive runs.
struct Chunk {
  uint64_t turn = 0;
  std::vector<model::PageRun> pieces;
  std::vector<AddressRange> ranges;
  size_t size = 0;
};

/// Where a chunk's pages stand among all that are stored.
struct Placement {
  uint64_t offset = 0;
  uint64_t first_block = 0;
};

class Copy {
 public:
  Copy(image::PageSink& sink, std::string name, std::span<const model::PageRun> runs, std::vector<PageEntry> told,
       PageSource& source, const image::Directory& directory)
      : sink_(sink),
        name_(std::move(name)),
        runs_(runs),
        told_(std::move(told)),
        chunk_size_(chunk_size_for(total_size(runs))),
        source_(source),
        directory_(directory),
        filters_(filters_of(directory)) {}

  Status run(unsigned workers) {
    TRY(parallel_for(
        workers,
        [this](size_t) -> Status {
          work();
          return {};
        },
        2));
    if (error_) return fail(std::move(*error_));
    return sink_.add(with_told({}, UINT64_MAX), {});
  }
  const std::vector<const FilterKind*>& filters() const { return filters_; }
  const std::vector<Block>& blocks() const { return blocks_; }
  PageStoreStats stats() const { return stats_; }

 private:
  /// Takes the next chunk; false at the end or after an error.
  bool take(Chunk& chunk) {
    const std::lock_guard lock(mutex_);
    chunk.pieces.clear();
    chunk.ranges.clear();
    chunk.size = 0;
    if (error_) return false;
    while (index_ < runs_.size() && chunk.size < chunk_size_) {
      model::PageRun piece = runs_[index_];
      piece.range.begin += inside_;
      piece.range.end = std::min(piece.range.end, piece.range.begin + (chunk_size_ - chunk.size));
      inside_ += piece.range.size();
      chunk.size += piece.range.size();
      if (piece.range.end == runs_[index_].range.end) ++index_, inside_ = 0;
      chunk.ranges.push_back(piece.range);
      chunk.pieces.push_back(piece);
    }
    if (chunk.size > 0) chunk.turn = turns_given_++;
    return chunk.size > 0;
  }

  void work() {
    if (auto status = copy_chunks(); !status) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::move(status).error();
      turn_changed_.notify_all();
    }
  }

  Status copy_chunks() {
    const auto buffer = std::make_unique_for_overwrite<uint8_t[]>(chunk_size_);  // zeroing would touch all of it
    std::optional<Pipeline> pipeline;
    if (!filters_.empty())
      pipeline = TRY(Pipeline::make(filters_, {directory_, name_, directory_.compression().level}, block_size));
    Bytes encoded;
    Chunk chunk;
    while (take(chunk)) {
      TRY(source_.read_ranges(chunk.ranges, {buffer.get(), chunk.size}));
      std::vector<iovec> parts;
      std::vector<PageEntry> entries;
      uint64_t size = 0;
      sift(chunk, buffer.get(), parts, entries, size);
      const auto placement = TRY(place(chunk, std::move(entries), size, pipeline ? std::span<iovec>{} : parts));
      if (!placement) return {};  // another worker has failed: it has said why
      if (pipeline) TRY(write_blocks(*pipeline, {compact(parts, buffer.get()), size}, *placement, encoded));
    }
    return {};
  }

  /// Moves all parts to the beginning of the buffer.
  static uint8_t* compact(const std::vector<iovec>& parts, uint8_t* buffer) {
    uint8_t* to = buffer;
    for (const iovec& part : parts) {
      if (part.iov_base != to) std::memmove(to, part.iov_base, part.iov_len);
      to += part.iov_len;
    }
    return buffer;
  }

  Status write_blocks(Pipeline& pipeline, ByteView pages, const Placement& placement, Bytes& encoded) {
    if (pages.empty()) return {};  // there was nothing but zeros
    const size_t count = (pages.size() + block_size - 1) / block_size;
    encoded.resize(std::max(encoded.size(), count * pipeline.bound(block_size)));
    std::vector<Block> blocks;
    uint64_t length = 0;
    for (size_t at = 0; at < pages.size(); at += block_size) {
      const ByteView bytes = pages.subspan(at, std::min(block_size, pages.size() - at));
      Block block{(placement.offset + at) / page_size, static_cast<uint32_t>(bytes.size() / page_size), length, 0};
      const uint64_t number = placement.first_block + blocks.size();
      block.length =
          static_cast<uint32_t>(TRY(pipeline.encode(block.place(number), bytes, std::span(encoded).subspan(length))));
      length += block.length;
      blocks.push_back(block);
    }
    const iovec part{encoded.data(), length};
    const std::lock_guard lock(storing_);
    keep(blocks, placement);
    encoded_size_ += length;
    return sink_.add({}, {&part, 1});
  }

  /// Gives blocks, whose offsets count from the first of them, their place in the file.
  void keep(std::vector<Block>& blocks, const Placement& placement) {
    if (blocks_.size() < placement.first_block + blocks.size()) blocks_.resize(placement.first_block + blocks.size());
    for (Block& block : blocks) block.offset += encoded_size_;
    std::ranges::copy(blocks, blocks_.begin() + static_cast<ptrdiff_t>(placement.first_block));
  }

  /// What is worth storing: as stretches of the buffer and as entries.
  static void sift(const Chunk& chunk, uint8_t* bytes, std::vector<iovec>& parts, std::vector<PageEntry>& entries,
                   uint64_t& size) {
    for (const model::PageRun& piece : chunk.pieces) {
      for (uint64_t at = piece.range.begin; at < piece.range.end; at += page_size, bytes += page_size) {
        if (!piece.keep_zeros && is_zero_page(bytes)) continue;
        append(entries, {{at, at + page_size}, image::page_flag::present, piece.shared_with_parent});
        if (!parts.empty() && static_cast<uint8_t*>(parts.back().iov_base) + parts.back().iov_len == bytes) {
          parts.back().iov_len += page_size;
        } else {
          parts.push_back({bytes, page_size});
        }
        size += page_size;
      }
    }
  }

  /// Waits for the chunk's turn, gives it its place in the file and stores it there (in blocks: only its entries).
  /// Nothing if another worker has failed.
  Result<std::optional<Placement>> place(const Chunk& chunk, std::vector<PageEntry> entries, uint64_t size,
                                         std::span<const iovec> bytes) {
    std::unique_lock lock(mutex_);
    turn_changed_.wait(lock, [&] { return error_ || turn_ == chunk.turn; });
    if (error_) return std::nullopt;
    stats_.pages_written += size / page_size;
    stats_.zero_pages_skipped += (chunk.size - size) / page_size;
    const Placement placement{size_, blocks_given_};
    size_ += size;
    blocks_given_ += (size + block_size - 1) / block_size;
    lock.unlock();
    if (!entries.empty()) {
      const uint64_t end = entries.back().range.end;
      const std::lock_guard storing(storing_);
      TRY(sink_.add(with_told(std::move(entries), end), bytes));
    }
    lock.lock();
    ++turn_;
    turn_changed_.notify_all();
    return placement;
  }

  /// The entries and what is only told of before `end`, in order.
  std::vector<PageEntry> with_told(std::vector<PageEntry> entries, uint64_t end) {
    const auto middle = static_cast<ptrdiff_t>(entries.size());
    for (; next_told_ < told_.size() && told_[next_told_].range.begin < end; ++next_told_)
      entries.push_back(told_[next_told_]);
    std::ranges::inplace_merge(entries, entries.begin() + middle, {},
                               [](const PageEntry& entry) { return entry.range.begin; });
    return entries;
  }

  image::PageSink& sink_;
  std::string name_;
  std::span<const model::PageRun> runs_;
  const std::vector<PageEntry> told_;  // entries without bytes
  size_t next_told_ = 0;
  const uint64_t chunk_size_;
  PageSource& source_;
  const image::Directory& directory_;
  const std::vector<const FilterKind*> filters_;

  std::mutex storing_;  // the sink, and where blocks lie
  std::mutex mutex_;
  std::condition_variable turn_changed_;
  size_t index_ = 0;     // next run
  uint64_t inside_ = 0;  // bytes of it that are taken
  uint64_t turns_given_ = 0, turn_ = 0;
  uint64_t size_ = 0;  // of the pages so far
  uint64_t blocks_given_ = 0;
  uint64_t encoded_size_ = 0;  // of the blocks so far
  std::vector<Block> blocks_;
  PageStoreStats stats_;
  std::optional<Error> error_;
};

Status check_runs(std::span<const model::PageRun> runs) {
  uint64_t end = 0;
  for (const model::PageRun& run : runs) {
    const bool aligned = run.range.begin % page_size == 0 && run.range.end % page_size == 0;
    if (!aligned || run.range.empty() || run.range.begin < end) {
      return fail(Error::internal("write pages", fmt::format("run {:#x}-{:#x} is empty, unaligned or out of order",
                                                             run.range.begin, run.range.end)));
    }
    end = run.range.end;
  }
  return {};
}

}  // namespace

uint64_t total_size(std::span<const AddressRange> ranges) {
  uint64_t sum = 0;
  for (const AddressRange& range : ranges) sum += range.size();
  return sum;
}

uint64_t total_size(std::span<const model::PageRun> runs) {
  uint64_t sum = 0;
  for (const model::PageRun& run : runs) sum += run.range.size();
  return sum;
}

Result<PageStoreStats> write_pages(const image::Directory& directory, const std::string& suffix, uint32_t pages_id,
                                   std::span<const model::PageRun> runs, PageSource& source,
                                   std::span<const model::PageRun> in_parent,
                                   std::span<const model::PageRun> elsewhere) {
  for (const auto& list : {runs, in_parent, elsewhere}) TRY(check_runs(list));
  const std::string name = image::file_name("pages-{}", pages_id);
  if (directory.encryption()) TRY(directory.encryption()->begin_file(name));
  LocalPages here(directory);
  image::PageStore& store = directory.page_store() ? *directory.page_store() : here;
  const auto sink = TRY(store.open({suffix, pages_id}, !in_parent.empty()));

  Copy copy(*sink, name, runs, entries_without_bytes(in_parent, elsewhere), source, directory);
  const unsigned workers = copy.filters().empty() ? std::min(2u, processor_count()) : processor_count();
  TRY(copy.run(total_size(runs) < parallel_copy_from ? 1 : workers));
  if (!copy.filters().empty()) {
    TRY(sink->store(block_table_name(pages_id),
                    [&](image::Writer& writer) { return write_block_table(writer, copy.filters(), copy.blocks()); }));
  }
  TRY(sink->finish());
  return copy.stats();
}

}  // namespace stasis::memory
