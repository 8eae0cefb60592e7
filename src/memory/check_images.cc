#include "memory/check_images.h"

#include <algorithm>

#include "base/parallel.h"
#include "image/encryption.h"
#include "memory/block_file.h"
#include "memory/needed_pages.h"

namespace stasis::memory {
namespace {

constexpr size_t blocks_at_once = 128;  ///< by one thread: 8 MiB

struct Part {
  const BlockFile* file = nullptr;
  const std::vector<AddressRange>* needed = nullptr;
  size_t first = 0, end = 0;
};

Status check_file(const image::Directory& directory, const std::string& file) {
  const auto bytes = TRY(directory.bytes_of(file));
  Bytes buffer(image::SealedOutput::block_size);
  for (uint64_t at = 0; at < bytes->size(); at += buffer.size()) {
    buffer.resize(std::min<uint64_t>(buffer.size(), bytes->size() - at));
    if (!TRY(bytes->read(at, buffer)))
      return fail(Error::invalid("read image", "the file became shorter while it was read", file));
  }
  return {};
}

Status check_pages(const Part& part) {
  auto reader = TRY(part.file->reader());
  for (size_t index = part.first; index < part.end; ++index)
    if (is_needed(*part.needed, part.file->blocks()[index])) TRY(reader.check(index));
  return {};
}

/// The directory is that which `prefix` leads to from the one that is checked.
Status check_level(const image::Directory& directory, const std::string& prefix, const NeededPages& needed) {
  std::vector<std::string> others;
  std::vector<std::unique_ptr<BlockFile>> pages;
  for (const std::string& file : directory.encryption()->files()) {
    if (BlockFile::is_one(directory, file))
      pages.push_back(TRY(BlockFile::open(directory, file)));
    else
      others.push_back(file);
  }
  std::vector<Part> parts;
  for (const auto& file : pages) {
    const auto found = needed.find(prefix + file->name());
    if (found == needed.end()) continue;
    for (size_t first = 0, count = file->blocks().size(); first < count; first += blocks_at_once)
      parts.push_back({file.get(), &found->second, first, std::min(first + blocks_at_once, count)});
  }
  TRY(parallel_for(others.size(), [&](size_t index) { return check_file(directory, others[index]); }));
  return parallel_for(parts.size(), [&](size_t index) { return check_pages(parts[index]); }, 1);
}

}  // namespace

Status check_images(const image::Directory& directory) {
  if (!directory.encryption()) return {};
  const NeededPages needed = TRY(needed_pages(directory));
  auto level = TRY(directory.holding(""));
  for (std::string prefix;; prefix += "parent/") {
    TRY(check_level(level, prefix, needed));
    if (level.encryption()->parent_id().empty()) return {};
    level = TRY(level.holding("parent/"));
  }
}

}  // namespace stasis::memory
