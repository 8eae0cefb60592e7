// A directory of images that goes away with the test, and memory made of a function.
#pragma once

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>

#include "image/directory.h"
#include "memory/pages.h"
#include "pagemap.pb.h"

namespace stasis::memory {

class Scratch {
 public:
  Scratch() {
    std::string pattern = (std::filesystem::temp_directory_path() / "stasis-memory-XXXXXX").string();
    root_ = mkdtemp(pattern.data());
  }
  ~Scratch() { std::filesystem::remove_all(root_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  const std::filesystem::path& root() const { return root_; }
  image::Directory directory(const std::string& name = "") const {
    std::filesystem::create_directories(root_ / name);
    auto opened = image::Directory::open((root_ / name).string());
    EXPECT_TRUE(opened) << opened.error().message();
    return std::move(*opened);
  }

 private:
  std::filesystem::path root_;
};

/// What a file takes of the disk, which is less than its size if it has holes.
inline uint64_t disk_use(const std::filesystem::path& file) {
  struct stat status{};
  EXPECT_EQ(stat(file.c_str(), &status), 0);
  constexpr uint64_t unit = 512;  // of st_blocks, whatever the file system
  return static_cast<uint64_t>(status.st_blocks) * unit;
}

/// Pages whose first byte and last byte are given; 0 is a page of zeros.
class FakePages : public PageSource {
 public:
  explicit FakePages(std::function<uint8_t(uint64_t page)> value) : value_(std::move(value)) {}
  Status read(uint64_t address, std::span<uint8_t> buffer) override {
    for (size_t at = 0; at < buffer.size(); at += page_size) fill(address + at, buffer.subspan(at, page_size));
    return {};
  }
  void fill(uint64_t address, std::span<uint8_t> page) const {
    std::ranges::fill(page, uint8_t{0});
    page.back() = value_(address / page_size);  // at the end: the worst case for a search for zeros
  }

 private:
  std::function<uint8_t(uint64_t page)> value_;
};

struct RawEntry {
  uint64_t address = 0;
  uint64_t pages = 0;
  uint32_t flags = 4;
};

/// A pagemap as somebody hostile would write it.
inline void write_pagemap(const image::Directory& directory, const std::string& suffix, uint32_t pages_id,
                          const std::vector<RawEntry>& entries) {
  auto writer = directory.create("pagemap-" + suffix + ".img");
  ASSERT_TRUE(writer);
  pagemap_head head;
  head.set_pages_id(pages_id);
  ASSERT_TRUE(writer->append(head));
  for (const auto& entry : entries) {
    pagemap_entry record;
    record.set_vaddr(entry.address);
    record.set_compat_nr_pages(static_cast<uint32_t>(entry.pages));
    record.set_nr_pages(entry.pages);
    record.set_flags(entry.flags);
    ASSERT_TRUE(writer->append(record));
  }
  ASSERT_TRUE(writer->finish());
}

inline void write_page_file(const image::Directory& directory, uint32_t pages_id, const std::vector<uint8_t>& pages) {
  auto writer = directory.create("pages-" + std::to_string(pages_id) + ".img");
  ASSERT_TRUE(writer);
  for (const uint8_t value : pages) ASSERT_TRUE(writer->append_raw(Bytes(page_size, value)));
  ASSERT_TRUE(writer->finish());
}

}  // namespace stasis::memory
