// The page store beside a plain map: memory is written, zeroed and discarded at random, rounds are stored on top of
// each other through random filters, superseded pages are released at random moments, and whatever can be read, in any
// order, is what the map says. In the end the pages are consumed by readers that come in any order.
#include "known_pages.h"

#include <rapidcheck/gtest.h>
#include <rapidcheck/state.h>
#include <sys/stat.h>

#include <ranges>
#include <set>

#include "image/encryption.h"
#include "inventory.pb.h"
#include "memory/check_images.h"
#include "memory/consumed_pages.h"
#include "memory/dedup.h"
#include "memory/increments.h"

namespace stasis::memory {
namespace {

constexpr uint64_t space_pages = 96;  ///< six blocks
constexpr const char* suffix = "7";

/// Which content a page has, by number; 0 is a page of zeros. Others are not mapped.
using Memory = std::map<uint64_t, uint64_t>;

Bytes content_of(uint64_t stamp) { return stamp == 0 ? Bytes(page_size) : page_of(static_cast<uint8_t>(stamp), stamp); }

struct Model {
  Memory memory;
  std::set<uint64_t> unchanged;  ///< since the last round
  std::vector<Memory> rounds;
  size_t superseded = 0;  ///< so many of the first rounds may lack pages
  uint64_t last_stamp = 0;
  bool all_raw = true;  ///< no round is compressed or encrypted

  void put(uint64_t page, uint64_t stamp) {
    memory[page] = stamp;
    unchanged.erase(page);
  }
};

AddressRange pages(uint64_t begin, uint64_t end) { return {begin * page_size, end * page_size}; }

/// Neighbours together.
template <typename Pages>
std::vector<AddressRange> ranges_of(const Pages& numbers) {
  std::vector<AddressRange> ranges;
  for (const uint64_t page : numbers) {
    if (!ranges.empty() && ranges.back().end == page * page_size)
      ranges.back().end += page_size;
    else
      ranges.push_back(pages(page, page + 1));
  }
  return ranges;
}

/// Directories on disk: one for each round, of one chain after the other.
struct Store {
  Scratch scratch;
  std::shared_ptr<image::KeyRing> ring = std::make_shared<image::KeyRing>();
  bool encrypted = false;
  size_t chain = 0;

  explicit Store(bool is_encrypted) : encrypted(is_encrypted) {
    const std::string key = scratch.root().string() + "/key";
    RC_ASSERT(image::make_shared_key_file(key).has_value());
    RC_ASSERT(ring->add_shared_key(key).has_value());
  }
  std::string name(size_t round) const { return std::to_string(chain) + "-" + std::to_string(round); }
  std::string path(size_t round) const { return (scratch.root() / name(round)).string(); }

  image::Directory opened(size_t round) const {
    auto directory = image::Directory::unlock(path(round), encrypted ? ring : nullptr);
    RC_ASSERT(directory.has_value());
    return std::move(*directory);
  }

  /// A new one on top of the round before.
  image::Directory begun(size_t round, const std::string& compression) const {
    auto directory = scratch.directory(name(round));
    if (round > 0) RC_ASSERT(link_parent(directory, "../" + name(round - 1)).has_value());
    if (!compression.empty()) directory.compress(*parse_compression(compression));
    if (!encrypted) return directory;
    RC_ASSERT(directory.encrypt(*ring).has_value());
    directory.read_parents_with(ring);
    return directory;
  }

  static void commit(const image::Directory& directory) {
    inventory_entry inventory;
    inventory.set_img_version(1000);
    if (directory.encryption()) *inventory.mutable_encryption() = directory.encryption()->entry();
    RC_ASSERT(directory.commit(inventory).has_value());
  }

  /// What the pages of all rounds take on disk.
  uint64_t held(size_t rounds) const {
    uint64_t bytes = 0;
    for (size_t round = 0; round < rounds; ++round) {
      struct stat status{};
      RC_ASSERT(stat((path(round) + "/pages-1.img").c_str(), &status) == 0);
      bytes += static_cast<uint64_t>(status.st_blocks) * 512;
    }
    return bytes;
  }
};

using Command = rc::state::Command<Model, Store>;

AddressRange any_pages() {
  const uint64_t begin = *rc::gen::inRange<uint64_t>(0, space_pages);
  return {begin, *rc::gen::inRange<uint64_t>(begin + 1, space_pages + 1)};
}

struct Write : Command {
  AddressRange where = any_pages();
  void apply(Model& model) const override {
    for (uint64_t page = where.begin; page < where.end; ++page) model.put(page, ++model.last_stamp);
  }
  void show(std::ostream& out) const override { out << "write " << where.begin << "-" << where.end; }
};

/// Pages here and there.
struct Scatter : Command {
  std::set<uint64_t> where = *rc::gen::container<std::set<uint64_t>>(rc::gen::inRange<uint64_t>(0, space_pages));
  void apply(Model& model) const override {
    for (const uint64_t page : where) model.put(page, ++model.last_stamp);
  }
  void show(std::ostream& out) const override { out << "write " << where.size() << " pages"; }
};

struct Zero : Command {
  AddressRange where = any_pages();
  void apply(Model& model) const override {
    for (uint64_t page = where.begin; page < where.end; ++page) model.put(page, 0);
  }
  void show(std::ostream& out) const override { out << "zero " << where.begin << "-" << where.end; }
};

struct Drop : Command {
  AddressRange where = any_pages();
  void apply(Model& model) const override {
    for (uint64_t page = where.begin; page < where.end; ++page) model.memory.erase(page), model.unchanged.erase(page);
  }
  void show(std::ostream& out) const override { out << "drop " << where.begin << "-" << where.end; }
};

/// As of private memory, whose changes are tracked, or as of shared memory, which is compared.
struct Round : Command {
  std::string compression = *rc::gen::element<std::string>("", "", "zstd", "lz4");
  bool compares = *rc::gen::arbitrary<bool>(), keeps_zeros = *rc::gen::arbitrary<bool>();

  void apply(Model& model) const override {
    model.rounds.push_back(model.memory);
    for (const auto& [page, stamp] : model.memory) model.unchanged.insert(page);
    model.all_raw = model.all_raw && compression.empty();
  }
  void run(const Model& before, Store& store) const override {
    const auto directory = store.begun(before.rounds.size(), compression);
    KnownPages source;
    for (const auto& [page, stamp] : before.memory) source.pages[page] = content_of(stamp);
    std::vector<model::PageRun> runs;
    for (const AddressRange& range : ranges_of(std::views::keys(before.memory)))
      runs.push_back({range, false, keeps_zeros});
    RC_ASSERT(write(before, directory, runs, source));
    Store::commit(directory);
  }
  bool write(const Model& before, const image::Directory& directory, const std::vector<model::PageRun>& runs,
             PageSource& source) const {
    if (compares || before.rounds.empty()) return write_compared(directory, suffix, 1, runs, source).has_value();
    const auto parent = ParentImages::linked(directory);
    RC_ASSERT(parent.has_value());
    const auto stored = (*parent)->stored(suffix);
    RC_ASSERT(stored.has_value());
    const auto increment = increment_of(runs, ranges_of(before.unchanged), **stored);
    return write_pages(directory, suffix, 1, increment.changed, source, increment.in_parent).has_value();
  }
  void show(std::ostream& out) const override {
    out << "round, " << (compression.empty() ? "raw" : compression) << (compares ? ", compared" : ", tracked")
        << (keeps_zeros ? ", with zeros" : "");
  }
};

void expect_content(PageSource& source, const Memory& memory, AddressRange range) {
  Bytes got(range.size());
  RC_ASSERT(source.read(range.begin, got).has_value());
  for (uint64_t at = 0; at < got.size(); at += page_size) {
    const auto known = memory.find((range.begin + at) / page_size);
    const Bytes wanted = content_of(known == memory.end() ? 0 : known->second);
    RC_ASSERT(std::equal(wanted.begin(), wanted.end(), got.begin() + static_cast<ptrdiff_t>(at)));
  }
}

/// Of any round that there is: what may lack pages is either refused or complete.
struct Read : Command {
  uint16_t which = *rc::gen::arbitrary<uint16_t>();
  std::vector<AddressRange> places = *rc::gen::container<std::vector<AddressRange>>(rc::gen::exec(any_pages));

  void checkPreconditions(const Model& model) const override { RC_PRE(!model.rounds.empty()); }
  void run(const Model& model, Store& store) const override {
    const size_t round = which % model.rounds.size();
    const auto directory = store.opened(round);
    auto images = ImagePages::open(directory, suffix);
    if (!images && round < model.superseded) {
      RC_ASSERT(images.error().message().find("have been released") != std::string::npos);
      return;
    }
    RC_ASSERT(images.has_value());
    RC_ASSERT(check_images(directory).has_value());
    expect_content(**images, model.rounds[round], pages(0, space_pages));
    for (const AddressRange& place : places)
      expect_content(**images, model.rounds[round], pages(place.begin, place.end));
  }
  void show(std::ostream& out) const override { out << "read"; }
};

struct Dedup : Command {
  void checkPreconditions(const Model& model) const override { RC_PRE(!model.rounds.empty()); }
  void apply(Model& model) const override { model.superseded = model.rounds.size() - 1; }
  void run(const Model& model, Store& store) const override {
    const size_t last = model.rounds.size() - 1;
    const auto directory = store.opened(last);
    RC_ASSERT(release_superseded(directory).has_value());
    if (!model.all_raw || store.encrypted) return;
    const auto runs = read_pagemap(directory, suffix);
    RC_ASSERT(runs.has_value());
    uint64_t once = 0;
    for (const StoredRun& run : *runs) once += run.range.size();
    // A file in many pieces needs a block that lists them (ext4).
    RC_ASSERT(store.held(last + 1) >= once);
    RC_ASSERT(store.held(last + 1) <= once + (last + 1) * page_size);
  }
  void show(std::ostream& out) const override { out << "dedup"; }
};

/// Readers take pieces in any order, some of them twice. Then another chain begins.
struct Consume : Command {
  std::vector<std::pair<uint8_t, uint8_t>> order =
      *rc::gen::container<std::vector<std::pair<uint8_t, uint8_t>>>(rc::gen::arbitrary<std::pair<uint8_t, uint8_t>>());

  void checkPreconditions(const Model& model) const override { RC_PRE(!model.rounds.empty()); }
  void apply(Model& model) const override {
    model.rounds.clear();
    model.unchanged.clear();
    model.superseded = 0;
    model.all_raw = true;
  }
  struct Piece {
    std::string file;
    AddressRange offsets, addresses;
  };
  std::vector<Piece> pieces_of(const std::vector<StoredRun>& runs) const {
    std::vector<Piece> pieces;
    size_t next = 0;
    const auto chosen = [&] {
      return order.empty() ? std::pair<uint8_t, uint8_t>{7, 1} : order[next++ % order.size()];
    };
    for (const StoredRun& run : runs) {
      if (run.zero) continue;
      for (uint64_t at = 0; at < run.range.size();) {
        const auto [length, times] = chosen();
        const uint64_t size = std::min<uint64_t>((length % 20 + 1) * page_size, run.range.size() - at);
        const Piece piece{run.directory + "pages-1.img",
                          {run.file_offset + at, run.file_offset + at + size},
                          {run.range.begin + at, run.range.begin + at + size}};
        pieces.insert(pieces.end(), 1 + times % 5 / 4, piece);
        at += size;
      }
    }
    for (size_t i = 0; i < pieces.size(); ++i) std::swap(pieces[i], pieces[i + chosen().second % (pieces.size() - i)]);
    return pieces;
  }
  void run(const Model& model, Store& store) const override {
    const size_t last = model.rounds.size() - 1;
    auto directory = store.opened(last);
    directory.consume_pages();
    const auto pieces = pieces_of(*read_pagemap(directory, suffix));
    auto images = ImagePages::open(directory, suffix);
    RC_ASSERT(images.has_value());
    const auto consumed = ConsumedPages::open(directory);
    RC_ASSERT(consumed.has_value());
    for (const Piece& piece : pieces) (*consumed)->expect(piece.file, piece.offsets);
    for (const Piece& piece : pieces) {
      expect_content(**images, model.rounds[last], piece.addresses);
      (*consumed)->done(piece.file, piece.offsets);
    }
    RC_ASSERT(!(*consumed)->trouble());
    RC_ASSERT(read_pagemap(directory, suffix).has_value() == pieces.empty());
    const uint64_t left = store.held(last + 1);
    (*consumed)->release_rest();
    RC_ASSERT(store.held(last + 1) == left);  // all of it was read: nothing was left for the end
    if (model.superseded == last) RC_ASSERT(left == 0u);
    ++store.chain;
  }
  void show(std::ostream& out) const override { out << "consume"; }
};

void compare_with_a_map(bool encrypted) {
  Store store(encrypted);
  rc::state::check(Model{}, store,
                   rc::state::gen::execOneOfWithArgs<Write, Scatter, Scatter, Zero, Drop, Round, Round, Round, Read,
                                                     Read, Dedup, Consume>());
}

RC_GTEST_PROP(PageStoreModel, plain_and_compressed, ()) { compare_with_a_map(false); }
RC_GTEST_PROP(PageStoreModel, encrypted, ()) { compare_with_a_map(true); }

}  // namespace
}  // namespace stasis::memory
