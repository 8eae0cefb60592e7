#include <fcntl.h>

#include <algorithm>
#include <cstring>

#include "image/names.h"
#include "memory/pages.h"

namespace stasis::memory {

Result<std::unique_ptr<ImagePages>> ImagePages::open(const image::Directory& directory, const std::string& suffix) {
  auto pages = std::make_unique<ImagePages>();
  pages->runs_ = TRY(read_pagemap(directory, suffix));
  for (const StoredRun& run : pages->runs_) {
    if (run.zero || pages->files_.contains({run.directory, run.pages_id})) continue;
    std::string name = run.directory + image::file_name("pages-{}", run.pages_id);
    UniqueFd fd(openat(directory.fd(), name.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.valid()) return fail_errno("open image", name);
    pages->files_.emplace(std::pair(run.directory, run.pages_id), File{std::move(fd), std::move(name)});
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
    if (stored && !run->zero) {
      const File& file = files_.at({run->directory, run->pages_id});
      FilePages bytes(file.fd.get(), file.name);
      TRY(bytes.read(run->file_offset + (address - run->range.begin), part));
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
