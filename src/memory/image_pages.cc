#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "image/names.h"
#include "memory/block_file.h"
#include "memory/pages.h"

namespace stasis::memory {

/// One of the two is there.
struct ImagePages::File {
  std::string name;
  std::unique_ptr<image::FileBytes> raw;
  std::unique_ptr<BlockFile> blocks;
  std::optional<BlockFile::Reader> reader;
  std::mutex reading;

  Status read(uint64_t offset, std::span<uint8_t> buffer) {
    if (raw != nullptr) {
      // It was long enough when it was opened.
      if (TRY(raw->read(offset, buffer))) return {};
      return fail(Error::invalid("read pages", "the file became shorter while it was read", name));
    }
    const std::lock_guard lock(reading);
    return reader->read(offset, buffer);
  }
};

ImagePages::ImagePages() = default;
ImagePages::~ImagePages() = default;

Result<std::unique_ptr<ImagePages>> ImagePages::open(const image::Directory& directory, const std::string& suffix) {
  std::unique_ptr<ImagePages> pages(new ImagePages());
  pages->runs_ = TRY(read_pagemap(directory, suffix));
  for (const StoredRun& run : pages->runs_) {
    if (!run.in_file()) continue;
    auto [known, fresh] = pages->files_.try_emplace({run.directory, run.pages_id});
    if (!fresh) continue;
    File& file = known->second;
    file.name = run.directory + image::file_name("pages-{}", run.pages_id);
    if (run.in_blocks) {
      file.blocks = TRY(BlockFile::open(directory, file.name));
      file.reader = TRY(file.blocks->reader());
      continue;
    }
    file.raw = TRY(directory.bytes_of(file.name));
  }
  return pages;
}

Status ImagePages::read(uint64_t address, std::span<uint8_t> buffer) {
  auto run = std::ranges::upper_bound(runs_, address, {}, [](const StoredRun& r) { return r.range.end; });
  while (!buffer.empty()) {
    const uint64_t end = address + buffer.size();
    const bool stored = run != runs_.end() && run->range.begin <= address;
    const uint64_t until = run == runs_.end() ? end : std::min(end, stored ? run->range.end : run->range.begin);
    const auto part = buffer.first(until - address);
    if (stored && run->elsewhere)
      return fail(Error::conflict("read pages", fmt::format("page {:#x} is not in the images", address)));
    if (stored && !run->zero) {
      TRY(files_.at({run->directory, run->pages_id}).read(run->file_offset + (address - run->range.begin), part));
    } else {
      std::memset(part.data(), 0, part.size());
    }
    if (stored) ++run;
    buffer = buffer.subspan(part.size());
    address = until;
  }
  return {};
}

}  // namespace stasis::memory
