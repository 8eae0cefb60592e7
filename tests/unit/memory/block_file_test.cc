// Pages files in blocks: compressed, encrypted, both; and what hostile hands do to them.
#include "memory/block_file.h"

#include <gmock/gmock.h>

#include <fstream>

#include "blocks.pb.h"
#include "image/encryption.h"
#include "memory/check_images.h"
#include "inventory.pb.h"
#include "scratch.h"

namespace stasis::memory {
namespace {

using testing::AllOf;
using testing::HasSubstr;

/// Text that compresses, and every fifth page what does not.
class MixedPages : public PageSource {
 public:
  Status read(uint64_t address, std::span<uint8_t> buffer) override {
    for (size_t at = 0; at < buffer.size(); at += page_size)
      fill((address + at) / page_size, buffer.subspan(at, page_size));
    return {};
  }
  static void fill(uint64_t page, std::span<uint8_t> bytes) {
    uint64_t state = page * 0x9e3779b97f4a7c15 + 1;
    for (size_t i = 0; i < bytes.size(); ++i) {
      state = state * 6364136223846793005 + 1442695040888963407;
      bytes[i] =
          page % 5 == 0 ? static_cast<uint8_t>(state >> 56) : static_cast<uint8_t>("checkpoint "[i % 11] + page % 7);
    }
  }
};

constexpr uint64_t first_page = 100, page_count = 1500;

struct Stored {
  Scratch scratch;
  std::shared_ptr<image::KeyRing> ring = std::make_shared<image::KeyRing>();

  explicit Stored(const std::string& compression = "zstd", bool encrypted = false, uint64_t pages = page_count) {
    if (encrypted) {
      EXPECT_TRUE(image::make_shared_key_file(path("key")));
      EXPECT_TRUE(ring->add_shared_key(path("key")));
    }
    write("", compression, encrypted, pages);
  }
  std::string path(const std::string& name) const { return (scratch.root() / name).string(); }

  /// A whole checkpoint, as far as directories know one.
  void write(const std::string& name, const std::string& compression, bool encrypted,
             uint64_t pages = page_count) const {
    auto directory = scratch.directory(name);
    if (!compression.empty()) directory.compress(*parse_compression(compression));
    if (encrypted) {
      ASSERT_TRUE(directory.encrypt(*ring));
    }
    MixedPages source;
    const model::PageRun run{{first_page * page_size, (first_page + pages) * page_size}, false};
    const auto stats = write_pages(directory, "7", 1, {&run, 1}, source);
    ASSERT_TRUE(stats) << stats.error().message();
    inventory_entry inventory;
    inventory.set_img_version(1000);
    if (encrypted) *inventory.mutable_encryption() = directory.encryption()->entry();
    const auto committed = directory.commit(inventory);
    ASSERT_TRUE(committed) << committed.error().message();
  }
  Result<image::Directory> open() const { return image::Directory::unlock(scratch.root().string(), ring); }

  void flip(const std::string& file, uint64_t at) const {
    std::fstream bytes(scratch.root() / file, std::ios::in | std::ios::out | std::ios::binary);
    bytes.seekg(static_cast<std::streamoff>(at));
    const int value = bytes.get();
    bytes.seekp(static_cast<std::streamoff>(at));
    bytes.put(static_cast<char>(value ^ 1));
  }
  uint64_t size(const std::string& file) const { return std::filesystem::file_size(scratch.root() / file); }
  void truncate(const std::string& file, uint64_t to) const { std::filesystem::resize_file(scratch.root() / file, to); }
};

void expect_all_pages(const image::Directory& directory) {
  auto pages = ImagePages::open(directory, "7");
  ASSERT_TRUE(pages) << pages.error().message();
  Bytes got(page_count * page_size), wanted(page_count * page_size);
  for (uint64_t i = 0; i < page_count; ++i)
    MixedPages::fill(first_page + i, {wanted.data() + i * page_size, page_size});
  const auto read = (*pages)->read(first_page * page_size, got);
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_TRUE(got == wanted);
  Bytes one(page_size);
  for (uint64_t i = page_count; i-- > 0; i -= std::min<uint64_t>(i, 6)) {  // backwards, and here and there
    ASSERT_TRUE((*pages)->read((first_page + i) * page_size, one));
    EXPECT_TRUE(std::equal(one.begin(), one.end(), wanted.begin() + static_cast<ptrdiff_t>(i * page_size))) << i;
  }
}

class EveryFilter : public testing::TestWithParam<std::pair<const char*, bool>> {};

TEST_P(EveryFilter, pages_come_back_in_any_order) {
  const Stored stored(GetParam().first, GetParam().second);
  const auto directory = stored.open();
  ASSERT_TRUE(directory) << directory.error().message();
  ASSERT_TRUE(check_images(*directory));
  expect_all_pages(*directory);
  const auto runs = read_pagemap(*directory, "7");
  ASSERT_TRUE(runs);
  EXPECT_TRUE(runs->front().in_blocks);
  EXPECT_TRUE(runs->front().through_stasis);
}

INSTANTIATE_TEST_SUITE_P(Filters, EveryFilter,
                         testing::Values(std::pair("zstd", false), std::pair("zstd:19", false), std::pair("lz4", false),
                                         std::pair("lz4:9", false), std::pair("", true), std::pair("lz4", true),
                                         std::pair("zstd", true)));

TEST(BlockFile, what_does_not_compress_stays_as_it_is) {
  const Stored stored("lz4");
  const auto file = BlockFile::open(*stored.open(), "pages-1.img");
  ASSERT_TRUE(file) << file.error().message();
  EXPECT_EQ((*file)->size(), page_count * page_size);
  EXPECT_LT(stored.size("pages-1.img"), page_count * page_size / 2);
  uint64_t end = 0;
  for (const Block& block : (*file)->blocks()) {
    EXPECT_EQ(block.first_page, end);
    EXPECT_LE(block.length, block.pages * page_size);
    end += block.pages;
  }
}

TEST(BlockFile, one_page_is_one_block) {
  const Stored stored("zstd", true, 1);
  const auto file = BlockFile::open(*stored.open(), "pages-1.img");
  ASSERT_TRUE(file) << file.error().message();
  EXPECT_EQ((*file)->blocks().size(), 1u);
}

// ---- compression

TEST(BlockFile, nothing_is_stored_of_zeros) {
  class Zeros : public PageSource {
    Status read(uint64_t, std::span<uint8_t> buffer) override {
      std::ranges::fill(buffer, uint8_t{0});
      return {};
    }
  };
  const Scratch scratch;
  auto directory = scratch.directory("");
  directory.compress(*parse_compression("zstd"));
  Zeros source;
  const model::PageRun run{{page_size, 1000 * page_size}, false};
  const auto stats = write_pages(directory, "7", 1, {&run, 1}, source);
  ASSERT_TRUE(stats) << stats.error().message();
  EXPECT_EQ(stats->pages_written, 0U);
  EXPECT_EQ(stats->zero_pages_skipped, 999U);
}

TEST(Compression, levels_are_checked) {
  EXPECT_EQ(parse_compression("zstd:7")->level, 7);
  EXPECT_EQ(parse_compression("lz4")->filter, "lz4");
  for (const char* wrong :
       {"", "zip", "zstd:", "zstd:0", "zstd:20", "zstd:3x", "zstd:-1", "lz4:13", "chacha20-poly1305"})
    EXPECT_FALSE(parse_compression(wrong)) << wrong;
  EXPECT_THAT(parse_compression("zip").error().message(), AllOf(HasSubstr("zip"), HasSubstr("zstd, lz4")));
  EXPECT_THAT(parse_compression("zstd:99").error().message(), HasSubstr("1 to 19"));
}

// ---- hostile tables

struct Hostile {
  Scratch scratch;
  image::Directory directory = scratch.directory();
  page_blocks_head head;
  page_blocks_entry entry;

  Hostile() {
    write_pagemap(directory, "7", 1, {{0x1000, 2}});
    write_page_file(directory, 1, {1, 2});
    head.set_version(1);
    head.set_block_pages(16);
    head.set_pages(2);
    entry.add_pages(2);
    entry.add_offset(0);
    entry.add_length(2 * page_size);
  }
  std::string problem() const {
    auto writer = directory.create("page-blocks-1.img");
    EXPECT_TRUE(writer);
    EXPECT_TRUE(writer->append(head));
    EXPECT_TRUE(writer->append(entry));
    EXPECT_TRUE(writer->finish());
    const auto runs = read_pagemap(directory, "7");
    if (!runs) return runs.error().message();
    auto pages = ImagePages::open(directory, "7");
    if (!pages) return pages.error().message();
    Bytes two(2 * page_size);
    const auto read = (*pages)->read(0x1000, two);
    return read ? "" : read.error().message();
  }
  void add_filter(const std::string& name, uint32_t version) {
    auto& filter = *head.add_filters();
    filter.set_name(name), filter.set_version(version);
  }
};

TEST(HostileBlocks, without_filters_are_fine) { EXPECT_EQ(Hostile().problem(), ""); }

TEST(HostileBlocks, unknown_filters_and_versions_are_named) {
  Hostile unknown;
  unknown.add_filter("snappy\x1b[2J", 1);
  EXPECT_THAT(unknown.problem(),
              AllOf(HasSubstr("page-blocks-1.img"), HasSubstr("snappy"), testing::Not(HasSubstr("\x1b"))));
  Hostile newer;
  newer.add_filter("zstd", 2);
  EXPECT_THAT(newer.problem(), AllOf(HasSubstr("page-blocks-1.img"), HasSubstr("version 2")));
  Hostile later;
  later.head.set_version(9);
  EXPECT_THAT(later.problem(), AllOf(HasSubstr("page-blocks-1.img"), HasSubstr("version")));
  Hostile twice;
  twice.add_filter("zstd", 1);
  twice.add_filter("lz4", 1);
  EXPECT_THAT(twice.problem(), HasSubstr("out of order"));
  Hostile sealed;
  sealed.add_filter("chacha20-poly1305", 1);
  EXPECT_THAT(sealed.problem(), HasSubstr("page-blocks-1.img"));
}

TEST(HostileBlocks, numbers_are_checked) {
  using Change = void (*)(Hostile&);
  const std::pair<Change, const char*> cases[] = {
      {[](Hostile& h) { h.head.set_block_pages(0); }, "block_pages"},
      {[](Hostile& h) { h.head.set_block_pages(257); }, "block_pages"},
      {[](Hostile& h) { h.head.set_pages(3); }, "field pages"},
      {[](Hostile& h) { h.entry.set_pages(0, 0); }, "field pages"},
      {[](Hostile& h) { h.entry.set_pages(0, 17); }, "field pages"},
      {[](Hostile& h) { h.entry.set_length(0, 0); }, "field length"},
      {[](Hostile& h) { h.entry.set_length(0, 3 * page_size); }, "field length"},
      {[](Hostile& h) { h.entry.set_offset(0, 1); }, "pages-1.img"},
      {[](Hostile& h) { h.entry.set_offset(0, UINT64_MAX); }, "pages-1.img"},
      {[](Hostile& h) { h.entry.add_offset(0); }, "lists"},
      {[](Hostile& h) { h.entry.set_pages(0, 1), h.entry.set_length(0, page_size), h.head.set_pages(1); },
       "its pagemap speaks of"},
      {[](Hostile& h) { h.entry.set_length(0, page_size); }, "block 0"},
  };
  for (const auto& [change, expected] : cases) {
    Hostile hostile;
    change(hostile);
    EXPECT_THAT(hostile.problem(), HasSubstr(expected));
  }
}

TEST(HostileBlocks, compressed_bytes_are_checked) {
  for (const char* filter : {"zstd", "lz4"}) {
    Hostile hostile;
    hostile.add_filter(filter, 1);
    hostile.entry.set_length(0, 100);
    EXPECT_THAT(hostile.problem(), AllOf(HasSubstr("pages-1.img, block 0"), HasSubstr("pages"))) << filter;
  }
}

// ---- encryption

std::string problem_of(const Stored& stored) {
  const auto directory = stored.open();
  if (!directory) return directory.error().message();
  const auto checked = check_images(*directory);
  return checked ? "" : checked.error().message();
}

TEST(Encrypted, is_read_with_its_key_alone) {
  Stored stored("zstd", true);
  EXPECT_EQ(problem_of(stored), "");
  const auto without = image::Directory::unlock(stored.scratch.root().string(), nullptr);
  ASSERT_FALSE(without);
  EXPECT_THAT(without.error().message(), AllOf(HasSubstr("--key-file"), HasSubstr("the key file")));
  auto wrong = std::make_shared<image::KeyRing>();
  ASSERT_TRUE(image::make_shared_key_file(stored.path("wrong")));
  ASSERT_TRUE(wrong->add_shared_key(stored.path("wrong")));
  const auto refused = image::Directory::unlock(stored.scratch.root().string(), wrong);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message(), HasSubstr("no key that was given fits"));
}

TEST(Encrypted, each_recipient_reads_and_the_writer_does_not) {
  Stored stored("lz4");
  stored.ring->recipients.clear();
  auto mine = std::make_shared<image::KeyRing>(), theirs = std::make_shared<image::KeyRing>();
  for (auto [ring, name] : {std::pair(mine, "mine"), std::pair(theirs, "theirs")}) {
    const auto recipient = image::make_identity_file(stored.path(name));
    ASSERT_TRUE(recipient);
    ASSERT_TRUE(stored.ring->add_recipient(ring == mine ? *recipient : stored.path(name)));
    ASSERT_TRUE(ring->add_identity(stored.path(name)));
  }
  stored.write("", "lz4", true);
  for (const auto& ring : {mine, theirs}) {
    const auto directory = image::Directory::unlock(stored.scratch.root().string(), ring);
    ASSERT_TRUE(directory) << directory.error().message();
    expect_all_pages(*directory);
  }
  EXPECT_THAT(problem_of(stored), HasSubstr("the identity"));
}

TEST(Encrypted, every_changed_byte_is_noticed) {
  for (const char* file : {"pages-1.img", "page-blocks-1.img", "pagemap-7.img", "manifest.img", "inventory.img"}) {
    const Stored original("zstd", true, 40);
    const uint64_t size = original.size(file);
    for (uint64_t at = 0; at < size; at += 1 + size / 23) {
      const Stored stored("zstd", true, 40);
      if (at >= stored.size(file)) continue;
      stored.flip(file, at);
      EXPECT_THAT(problem_of(stored), HasSubstr(std::string(file).substr(0, 4))) << file << " at " << at;
    }
  }
}

TEST(Encrypted, files_that_are_cut_off_are_noticed) {
  for (const char* file : {"pages-1.img", "page-blocks-1.img", "pagemap-7.img", "manifest.img"}) {
    for (const uint64_t left : {0, 10, 16, 31, 32, 40}) {
      const Stored stored("zstd", true, 40);
      stored.truncate(file, left);
      EXPECT_THAT(problem_of(stored), HasSubstr(std::string(file).substr(0, 6))) << file << " of " << left;
    }
    const Stored stored("zstd", true, 40);
    stored.truncate(file, stored.size(file) - 1);
    EXPECT_THAT(problem_of(stored), HasSubstr(std::string(file).substr(0, 6))) << file;
  }
}

TEST(Encrypted, missing_and_exchanged_files_are_noticed) {
  {
    const Stored stored("zstd", true);
    std::filesystem::remove(stored.scratch.root() / "page-blocks-1.img");
    EXPECT_THAT(problem_of(stored), AllOf(HasSubstr("page-blocks-1.img"), HasSubstr("missing")));
  }
  // Another checkpoint for the same key: each of its files alone does not fit.
  for (const char* file : {"pages-1.img", "page-blocks-1.img", "pagemap-7.img", "manifest.img", "inventory.img"}) {
    const Stored stored("zstd", true);
    stored.write("other", "zstd", true);
    std::filesystem::copy_file(stored.scratch.root() / "other" / file, stored.scratch.root() / file,
                               std::filesystem::copy_options::overwrite_existing);
    EXPECT_NE(problem_of(stored), "") << file;
  }
}

TEST(Encrypted, pages_that_are_not_encrypted_are_refused) {
  const Stored stored("zstd", true);
  std::filesystem::remove(stored.scratch.root() / "inventory.img");
  auto plain = stored.scratch.directory();
  inventory_entry inventory;
  inventory.set_img_version(2);
  ASSERT_TRUE(plain.commit(inventory));
  EXPECT_THAT(problem_of(stored), HasSubstr("not encrypted"));
}

TEST(Encrypted, parents_must_be_those_of_the_dump) {
  Stored stored("zstd", true);
  stored.write("old", "zstd", true);
  stored.write("forged", "zstd", true);
  std::filesystem::create_directory(stored.scratch.root() / "new");
  std::filesystem::create_symlink("../old", stored.scratch.root() / "new" / "parent");
  stored.write("new", "zstd", true);
  const auto open = [&] {
    auto directory = image::Directory::unlock(stored.path("new"), stored.ring);
    return directory ? directory->holding("parent/pages-1.img") : std::move(directory);
  };
  EXPECT_TRUE(open());
  std::filesystem::remove(stored.scratch.root() / "new" / "parent");
  std::filesystem::create_symlink("../forged", stored.scratch.root() / "new" / "parent");
  const auto forged = open();
  ASSERT_FALSE(forged);
  EXPECT_THAT(forged.error().message(), HasSubstr("parent"));
}

TEST(Encrypted, blocks_do_not_change_places) {
  const Stored stored("", true);
  // Without compression all whole blocks are of one size: exchange the first two.
  const uint64_t length = block_size + image::FileCipher::overhead;
  std::fstream file(stored.scratch.root() / "pages-1.img", std::ios::in | std::ios::out | std::ios::binary);
  std::string first(length, '\0'), second(length, '\0');
  file.read(first.data(), static_cast<std::streamsize>(length))
      .read(second.data(), static_cast<std::streamsize>(length));
  file.seekp(0);
  file.write(second.data(), static_cast<std::streamsize>(length))
      .write(first.data(), static_cast<std::streamsize>(length));
  file.close();
  EXPECT_THAT(problem_of(stored), HasSubstr("pages-1.img, block"));
}

// ---- keys

TEST(Keys, that_others_may_read_are_refused) {
  const Scratch scratch;
  const std::string path = (scratch.root() / "key").string();
  ASSERT_TRUE(image::make_shared_key_file(path));
  image::KeyRing ring;
  EXPECT_TRUE(ring.add_shared_key(path));
  std::filesystem::permissions(path, std::filesystem::perms::group_read, std::filesystem::perm_options::add);
  const auto refused = ring.add_shared_key(path);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message(), AllOf(HasSubstr("640"), HasSubstr("chmod 600")));
  EXPECT_FALSE(image::make_shared_key_file(path)) << "keys are not overwritten";
}

TEST(Keys, of_the_wrong_kind_are_refused) {
  const Scratch scratch;
  const std::string shared = (scratch.root() / "key").string(), identity = (scratch.root() / "identity").string();
  ASSERT_TRUE(image::make_shared_key_file(shared));
  ASSERT_TRUE(image::make_identity_file(identity));
  image::KeyRing ring;
  EXPECT_THAT(ring.add_identity(shared).error().message(), HasSubstr("no identity in it"));
  EXPECT_THAT(ring.add_shared_key(identity).error().message(), HasSubstr("no shared key in it"));
  EXPECT_THAT(ring.add_recipient("stasis-recipient:12").error().message(), HasSubstr("public"));
  EXPECT_THAT(ring.add_recipient("stasis-recipient:" + std::string(64, '0')).error().message(), HasSubstr("anybody"));
  EXPECT_FALSE(ring.add_recipient((scratch.root() / "none").string()));
  EXPECT_TRUE(ring.add_recipient(identity));
}

}  // namespace
}  // namespace stasis::memory
