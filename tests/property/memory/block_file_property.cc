// Random pages through random filters, read back whole, page by page, and across blocks.
#include "known_pages.h"

#include "image/encryption.h"
#include "inventory.pb.h"
#include "memory/block_file.h"
#include "memory/check_images.h"

namespace stasis::memory {
namespace {

struct Store {
  Scratch scratch;
  std::shared_ptr<image::KeyRing> ring = std::make_shared<image::KeyRing>();
  KnownPages source;
  std::vector<model::PageRun> runs;
  uint64_t end = 0;

  /// Runs with gaps between them, and what is in them.
  explicit Store(const std::vector<std::tuple<uint8_t, uint8_t, uint8_t>>& shape) {
    for (const auto& [gap, length, kind] : shape) {
      constexpr uint8_t longest_gap = 8, longest_run = 40;  // more than two blocks
      const uint64_t first = end + gap % longest_gap, last = first + 1 + length % longest_run;
      runs.push_back({{first * page_size, last * page_size}, false});
      for (uint64_t page = first; page < last; ++page)
        source.pages[page] = page_of(static_cast<uint8_t>(kind + page % 4), page);
      end = last;
    }
    RC_ASSERT(image::make_shared_key_file((scratch.root() / "key").string()).has_value());
    RC_ASSERT(ring->add_shared_key((scratch.root() / "key").string()).has_value());
  }

  image::Directory written(const Storage& storage) {
    auto directory = scratch.directory();
    if (!storage.compression.empty()) directory.compress(*parse_compression(storage.compression));
    if (storage.encrypted) RC_ASSERT(directory.encrypt(*ring).has_value());
    const auto stats = write_pages(directory, "7", 1, runs, source);
    RC_ASSERT(stats.has_value());
    inventory_entry inventory;
    inventory.set_img_version(1000);
    if (storage.encrypted) *inventory.mutable_encryption() = directory.encryption()->entry();
    RC_ASSERT(directory.commit(inventory).has_value());
    auto opened = image::Directory::unlock(scratch.root().string(), storage.encrypted ? ring : nullptr);
    RC_ASSERT(opened.has_value());
    return std::move(*opened);
  }
};

RC_GTEST_PROP(BlockFileProperty, what_goes_through_filters_comes_back,
              (const std::vector<std::tuple<uint8_t, uint8_t, uint8_t>>& shape)) {
  const auto storage = *any_storage();
  Store store(shape);
  const auto directory = store.written(storage);
  RC_ASSERT(check_images(directory).has_value());
  auto pages = ImagePages::open(directory, "7");
  RC_ASSERT(pages.has_value());
  Bytes got((store.end + 1) * page_size), wanted(got.size());
  RC_ASSERT((*pages)->read(0, got).has_value());
  RC_ASSERT(store.source.read(0, wanted).has_value());
  RC_ASSERT(got == wanted);
  // Random access, in any order.
  const auto places = *rc::gen::container<std::vector<std::pair<uint16_t, uint8_t>>>(
      rc::gen::arbitrary<std::pair<uint16_t, uint8_t>>());
  for (const auto& [place, length] : places) {
    const uint64_t first = place % (store.end + 1), count = std::min<uint64_t>(1 + length, store.end + 1 - first);
    Bytes part(count * page_size);
    RC_ASSERT((*pages)->read(first * page_size, part).has_value());
    RC_ASSERT(std::equal(part.begin(), part.end(), wanted.begin() + static_cast<ptrdiff_t>(first * page_size)));
  }
}

// One changed bit anywhere in an encrypted directory never goes unnoticed.
RC_GTEST_PROP(BlockFileProperty, no_changed_bit_goes_unnoticed, (uint64_t at, uint8_t bit)) {
  Store store({{1, 30, 1}, {2, 20, 2}});
  const auto compression = *rc::gen::element<std::string>("", "zstd", "lz4");
  (void)store.written({compression, true});
  const auto file = *rc::gen::element<std::string>("pages-1.img", "page-blocks-1.img", "pagemap-7.img", "manifest.img",
                                                   "inventory.img");
  const auto path = store.scratch.root() / file;
  Bytes bytes(std::filesystem::file_size(path));
  FILE* stream = fopen(path.c_str(), "r+");
  RC_ASSERT(fread(bytes.data(), 1, bytes.size(), stream) == bytes.size());
  bytes[at % bytes.size()] ^= static_cast<uint8_t>(1 << bit % 8);
  rewind(stream);
  RC_ASSERT(fwrite(bytes.data(), 1, bytes.size(), stream) == bytes.size());
  fclose(stream);
  const auto directory = image::Directory::unlock(store.scratch.root().string(), store.ring);
  const bool is_noticed = !directory || !check_images(*directory);
  RC_ASSERT(is_noticed);
}

}  // namespace
}  // namespace stasis::memory
