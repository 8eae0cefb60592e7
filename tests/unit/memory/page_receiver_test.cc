// The page server: what honest clients send is stored, what hostile ones send is refused and leaves nothing.
#include "memory/page_receiver.h"

#include <gmock/gmock.h>

#include <fstream>

#include "memory/dedup.h"
#include "memory/increments.h"
#include "memory_stream.h"
#include "scratch.h"

namespace stasis::memory {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint32_t flagged(uint32_t flags) { return wire::add_flagged | flags << wire::flag_shift; }
constexpr uint32_t present = 4, in_parent = 1;
constexpr uint64_t task_7 = 7 << 8 | 1, task_8 = 8 << 8 | 1, segment_3 = 3 << 8 | 2;
constexpr uint64_t pages_file = 5 << 8 | 0x41, table = 5 << 8 | 0x42;

Bytes page(uint8_t value, size_t count = 1) { return Bytes(count * page_size, value); }

struct Receiver : testing::Test {
  Scratch scratch;
  image::Directory directory = scratch.directory("images");

  Result<ReceivedPages> receive(const Script& script, size_t piece = SIZE_MAX) {
    MemoryStream stream(script.bytes(), piece);
    auto received = PageReceiver(directory).receive(stream);
    answers = stream.answers;
    return received;
  }
  void refuses(const Script& script, const std::string& reason) {
    const auto received = receive(script);
    ASSERT_FALSE(received);
    EXPECT_THAT(received.error().message(), HasSubstr(reason));
    EXPECT_THAT(*directory.list(), IsEmpty()) << "a part was left";
  }
  /// Pages 1 and 2 of task 7 in the parent images.
  void make_parent() {
    const auto parent = scratch.directory("parent");
    write_pagemap(parent, "7", 1, {{0x1000, 2}});
    write_page_file(parent, 1, {1, 2});
    ASSERT_TRUE(link_parent(directory, "../parent"));
  }
  Bytes read(const std::string& suffix, uint64_t address, size_t pages) {
    const auto images = ImagePages::open(directory, suffix);
    EXPECT_TRUE(images) << images.error().message();
    Bytes bytes(pages * page_size);
    if (!images) return bytes;
    EXPECT_TRUE((*images)->read(address, bytes));
    return bytes;
  }
  Bytes answers;
};

TEST_F(Receiver, StoresWhatCriuSends) {
  Script script;
  script.say(wire::ask_parent, 0, 0, task_7);
  script.say(wire::open_memory, 0, 0, task_7);
  script.say(flagged(present | image::page_flag::lazy), 2, 0x1000, task_7).say(page(1)).say(page(2));
  script.say(wire::add_pages, 1, 0x3000, task_7).say(page(3));
  script.say(flagged(present), 300, 0x10000, task_7).say(page(4, 300));
  script.say(wire::open_quietly, 0, 0, segment_3);
  script.say(flagged(present), 1, 0, segment_3).say(page(5));
  script.say(wire::close);
  for (const size_t piece : {SIZE_MAX, size_t{1000}}) {
    ASSERT_TRUE(PageReceiver::clear(directory));
    const auto received = receive(script, piece);
    ASSERT_TRUE(received) << received.error().message();
    EXPECT_EQ(received->memories, 2u);
    EXPECT_EQ(received->bytes, 304 * page_size);
    EXPECT_EQ(answers, Bytes(4 + 1 + 4)) << "no parent, no parent, stored";
    EXPECT_EQ(read("7", 0x1000, 1), page(1));
    EXPECT_EQ(read("7", 0x3000, 1), page(3));
    EXPECT_EQ(read("7", 0x10000, 300), page(4, 300));
    EXPECT_EQ(read("shmem-3", 0, 1), page(5));
  }
}

TEST_F(Receiver, KeepsOurFlagWhereReadersLookForIt) {
  Script script;
  script.say(wire::open_memory, 0, 0, task_7);
  script.say(flagged(present | wire::shared_with_parent), 1, 0x1000, task_7).say(page(1)).say(wire::close);
  ASSERT_TRUE(receive(script));
  const auto runs = read_pagemap(directory, "7");
  ASSERT_TRUE(runs);
  ASSERT_EQ(runs->size(), 1u);
  EXPECT_TRUE(runs->front().shared_with_parent);
}

TEST_F(Receiver, StoresReferencesToParentImages) {
  make_parent();
  Script script;
  script.say(wire::ask_parent, 0, 0, task_7).say(wire::ask_parent, 0, 0, task_8);
  script.say(wire::open_memory, 0, 0, task_7);
  script.say(flagged(in_parent), 1, 0x1000, task_7);
  script.say(flagged(present), 1, 0x2000, task_7).say(page(9));
  script.say(wire::close);
  const auto received = receive(script);
  ASSERT_TRUE(received) << received.error().message();
  EXPECT_THAT(answers, ElementsAre(1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0));
  EXPECT_EQ(read("7", 0x1000, 1), page(1));
  EXPECT_EQ(read("7", 0x2000, 1), page(9));
}

TEST_F(Receiver, StoresBlocksAsTheyCome) {
  Script script;
  script.say(wire::announce_blocks, wire::blocks_version, 1);
  script.say(wire::store_part, 3, 0, pages_file)
      .say(Bytes{1, 2, 3})
      .say(wire::store_part, 2, 3, pages_file)
      .say(Bytes{4, 5});
  script.say(wire::store_part, 1, 0, table).say(Bytes{6});
  script.say(wire::store_part, 1, 0, task_7).say(Bytes{7});
  script.say(wire::close);
  const auto received = receive(script);
  ASSERT_TRUE(received) << received.error().message();
  EXPECT_TRUE(received->sealed);
  EXPECT_THAT(*directory.list(), ElementsAre("page-blocks-5.img", "pagemap-7.img", "pages-5.img"));
  std::ifstream file(scratch.root() / "images/pages-5.img");
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), "\1\2\3\4\5");
}

TEST_F(Receiver, OtherImagesOfTheDirectoryAreLeftAlone) {
  for (const char* name : {"inventory.img", "core-7.img", "pages-1.img", "pagemap-7.img", "page-blocks-1.img"})
    std::ofstream(scratch.root() / "images" / name) << "old";
  ASSERT_TRUE(PageReceiver::clear(directory));
  EXPECT_THAT(*directory.list(), ElementsAre("core-7.img"));
  Script script;
  script.say(wire::open_memory, 0, 0, task_7).say(flagged(present), 1, 0x1000, task_7).say(page(1));
  EXPECT_FALSE(receive(script));
  EXPECT_THAT(*directory.list(), ElementsAre("core-7.img"));
}

TEST_F(Receiver, AnEndThatComesTooEarlyIsAnError) {
  Script script;
  script.say(wire::open_memory, 0, 0, task_7);
  script.say(flagged(present), 2, 0x1000, task_7).say(page(1, 2));
  refuses(script, "before everything was sent");
  script.say(wire::close);
  for (const size_t length : {size_t{1}, size_t{31}, size_t{33}, size_t{64}, size_t{65}, size_t{64 + 4096},
                              size_t{64 + 8191}, script.bytes().size() - 1}) {
    Script cut;
    cut.say(Bytes(script.bytes().begin(), script.bytes().begin() + static_cast<ptrdiff_t>(length)));
    const auto received = receive(cut);
    ASSERT_FALSE(received) << length;
    EXPECT_THAT(*directory.list(), IsEmpty()) << length;
  }
  EXPECT_TRUE(receive(script));
}

struct Hostile {
  std::string what;
  std::function<void(Script&)> say;
  std::string reason;
};
void PrintTo(const Hostile& one, std::ostream* out) { *out << one.what; }

struct HostileStream : Receiver, testing::WithParamInterface<Hostile> {};

TEST_P(HostileStream, IsRefusedAndLeavesNothing) {
  make_parent();
  Script script;
  GetParam().say(script);
  script.say(wire::close);
  refuses(script, GetParam().reason);
}

constexpr uint64_t most = UINT64_MAX;
INSTANTIATE_TEST_SUITE_P(
    Plain, HostileStream,
    testing::Values(
        Hostile{"unknown command", [](Script& s) { s.say(99); }, "unknown"},
        Hostile{"flags where none are", [](Script& s) { s.say(wire::open_memory | 1 << 16, 0, 0, task_7); }, "flags"},
        Hostile{"no such kind", [](Script& s) { s.say(wire::open_memory, 0, 0, 7 << 8 | 9); }, "dst_id"},
        Hostile{"task 0", [](Script& s) { s.say(wire::open_memory, 0, 0, 1); }, "dst_id"},
        Hostile{"huge pid", [](Script& s) { s.say(wire::ask_parent, 0, 0, (1ull << 40) << 8 | 1); }, "dst_id"},
        Hostile{"a pages file opened", [](Script& s) { s.say(wire::open_memory, 0, 0, pages_file); }, "no pagemap"},
        Hostile{"pages of nothing", [](Script& s) { s.say(wire::add_pages, 0, 0x1000, task_7); }, "nr_pages"},
        Hostile{"more than there is", [](Script& s) { s.say(wire::add_pages, most, 0x1000, task_7); }, "nr_pages"},
        Hostile{"over the edge", [](Script& s) { s.say(wire::add_pages, 2, most - 4095, task_7); }, "nr_pages"},
        Hostile{"half a page", [](Script& s) { s.say(wire::add_pages, 1, 0x1001, task_7); }, "vaddr"},
        Hostile{"replayed",
                [](Script& s) {
                  for (int i = 0; i < 2; ++i) s.say(wire::add_pages, 1, 0x1000, task_7).say(page(1));
                },
                "vaddr"},
        Hostile{"reordered",
                [](Script& s) {
                  s.say(wire::add_pages, 1, 0x2000, task_7).say(page(1));
                  s.say(wire::add_pages, 1, 0x1000, task_7).say(page(1));
                },
                "vaddr"},
        Hostile{"overlapping",
                [](Script& s) {
                  s.say(wire::add_pages, 2, 0x1000, task_7).say(page(1, 2));
                  s.say(wire::add_pages, 1, 0x2000, task_7).say(page(1));
                },
                "vaddr"},
        Hostile{"opened twice",
                [](Script& s) {
                  s.say(wire::open_memory, 0, 0, task_7).say(wire::open_memory, 0, 0, task_8);
                  s.say(wire::open_memory, 0, 0, task_7);
                },
                "sent twice"},
        Hostile{"here and in the parent", [](Script& s) { s.say(flagged(5), 1, 0x1000, task_7); }, "flags"},
        Hostile{"unknown flag", [](Script& s) { s.say(flagged(0x84), 1, 0x1000, task_7); }, "flags"},
        Hostile{"not in the parent", [](Script& s) { s.say(wire::add_hole, 3, 0x1000, task_7); }, "0x1000 should be"},
        Hostile{"no parent", [](Script& s) { s.say(wire::add_hole, 1, 0x1000, task_8); }, "not here"},
        Hostile{"pages asked for", [](Script& s) { s.say(wire::get_pages, 1, 0x1000, 7); }, "--lazy-pages"},
        Hostile{"blocks too late",
                [](Script& s) { s.say(wire::open_memory, 0, 0, task_7).say(wire::announce_blocks, 1); }, "too late"},
        Hostile{"parts without a word", [](Script& s) { s.say(wire::store_part, 1, 0, pages_file); }, "announced"}));

void with_blocks(Script& script) { script.say(wire::announce_blocks, wire::blocks_version); }

INSTANTIATE_TEST_SUITE_P(
    Blocks, HostileStream,
    testing::Values(
        Hostile{"another version", [](Script& s) { s.say(wire::announce_blocks, 2); }, "version 2"},
        Hostile{"neither yes nor no", [](Script& s) { s.say(wire::announce_blocks, 1, 2); }, "neither"},
        Hostile{"announced twice", [](Script& s) { with_blocks(s), with_blocks(s); }, "too late"},
        Hostile{"plain pages", [](Script& s) { with_blocks(s), s.say(wire::open_memory, 0, 0, task_7); },
                "as they are"},
        Hostile{"plain pages at once", [](Script& s) { with_blocks(s), s.say(wire::add_pages, 1, 0, task_7); },
                "as they"},
        Hostile{"part too long",
                [](Script& s) { with_blocks(s), s.say(wire::store_part, wire::largest_part + 1, 0, pages_file); },
                "a part of"},
        Hostile{"part of nothing",
                [](Script& s) {
                  with_blocks(s);
                  for (int i = 0; i < 2; ++i) s.say(wire::store_part, 0, 0, pages_file);
                },
                "a part of"},
        Hostile{"no such file", [](Script& s) { with_blocks(s), s.say(wire::store_part, 1, 0, 5 << 8 | 0x43); },
                "dst_id"},
        Hostile{"begun in the middle", [](Script& s) { with_blocks(s), s.say(wire::store_part, 1, 1, pages_file); },
                "vaddr"},
        Hostile{"part replayed",
                [](Script& s) {
                  with_blocks(s);
                  for (int i = 0; i < 2; ++i) s.say(wire::store_part, 1, 0, pages_file).say(Bytes{1});
                },
                "vaddr"},
        Hostile{
            "file sent twice",
            [](Script& s) {
              with_blocks(s);
              s.say(wire::store_part, 1, 0, pages_file).say(Bytes{1}).say(wire::store_part, 1, 0, table).say(Bytes{1});
              s.say(wire::store_part, 1, 0, pages_file).say(Bytes{1});
            },
            "sent twice"}));

TEST_F(Receiver, ALinkInPlaceOfAFileIsNotFollowed) {
  std::filesystem::create_symlink("/etc/passwd", scratch.root() / "images/pages-65537.img");
  Script script;
  script.say(wire::open_memory, 0, 0, task_7).say(wire::close);
  EXPECT_FALSE(receive(script));
}

TEST(PageProtocol, OldNumbersOfKindsAreKnown) {
  EXPECT_EQ(wire::decode_target(7 << 8 | 11), (wire::Target{wire::Target::task, 7}));
  EXPECT_EQ(wire::decode_target(7 << 8 | 28), (wire::Target{wire::Target::shared_memory, 7}));
  EXPECT_EQ(wire::decode_target(0 << 8 | 2), (wire::Target{wire::Target::shared_memory, 0}));
  EXPECT_EQ(wire::target_of("shmem-3")->encoded(), segment_3);
  EXPECT_FALSE(wire::target_of("shmem-x"));
}

}  // namespace
}  // namespace stasis::memory
