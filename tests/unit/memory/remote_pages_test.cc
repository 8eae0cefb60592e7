// A memory that goes through a page server is the one that was sent: plain, in blocks, and as increments.
#include "memory/remote_pages.h"

#include <gmock/gmock.h>
#include <sys/socket.h>

#include <fstream>
#include <future>

#include "image/page_sink.h"
#include "memory/filter/filter.h"
#include "memory/increments.h"
#include "memory/page_receiver.h"
#include "memory_stream.h"
#include "scratch.h"

namespace stasis::memory {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::Not;

FakePages contents([](uint64_t page) { return static_cast<uint8_t>(page % 5 == 0 ? 0 : 1 + page % 200); });

std::vector<model::PageRun> runs_of(std::initializer_list<AddressRange> pages) {
  std::vector<model::PageRun> runs;
  for (const AddressRange& range : pages) runs.push_back({{range.begin * page_size, range.end * page_size}});
  return runs;
}

/// A client and a server, each with a directory.
struct Pair {
  Scratch& scratch;
  image::Directory here, there;
  std::shared_ptr<RemotePages> remote;
  std::future<Result<ReceivedPages>> received;

  Pair(Scratch& all, const std::string& round, const std::string& compression = "")
      : scratch(all), here(all.directory("here-" + round)), there(all.directory("there-" + round)) {
    if (!compression.empty()) here.compress(*parse_compression(compression));
  }
  ~Pair() { here.store_pages_in(nullptr); }
  void begin(RemotePages::Ending ending = RemotePages::Ending::close) {
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    received = std::async(std::launch::async, [this, fd = ends[1]]() -> Result<ReceivedPages> {
      const auto stream = plain_stream(UniqueFd(fd));
      auto stored = TRY(PageReceiver(there).receive(*stream));
      TRY(stream->finish());
      return stored;
    });
    auto begun = RemotePages::begin(plain_stream(UniqueFd(ends[0])), here, ending);
    ASSERT_TRUE(begun) << begun.error().message();
    remote = *begun;
    here.store_pages_in(remote);
  }
  void complete() {
    const auto completed = remote->complete();
    ASSERT_TRUE(completed) << completed.error().message();
    const auto stored = received.get();
    ASSERT_TRUE(stored) << stored.error().message();
  }
  Bytes read(const std::string& suffix, uint64_t first, uint64_t pages) const {
    const auto images = ImagePages::open(there, suffix);
    EXPECT_TRUE(images) << images.error().message();
    Bytes bytes(pages * page_size);
    if (!images) return bytes;
    EXPECT_TRUE((*images)->read(first * page_size, bytes));
    return bytes;
  }
};

Bytes expected(uint64_t first, uint64_t pages) {
  Bytes bytes(pages * page_size);
  EXPECT_TRUE(contents.read(first * page_size, bytes));
  return bytes;
}

struct EveryForm : testing::TestWithParam<std::string> {};

TEST_P(EveryForm, ArrivesAsItWasSent) {
  Scratch scratch;
  Pair pair(scratch, "1", GetParam());
  pair.begin();
  const auto written = write_pages(pair.here, "7", 1, runs_of({{1, 30}, {100, 1000}}), contents);
  ASSERT_TRUE(written) << written.error().message();
  EXPECT_EQ(written->pages_written, 24u + 720u);
  ASSERT_TRUE(write_pages(pair.here, "shmem-3", 2, runs_of({{0, 20}}), contents));
  ASSERT_TRUE(write_pages(pair.here, "8", 3, {}, contents));
  pair.complete();
  EXPECT_EQ(pair.read("7", 1, 29), expected(1, 29));
  EXPECT_EQ(pair.read("7", 30, 70), Bytes(70 * page_size)) << "not sent";
  EXPECT_EQ(pair.read("7", 100, 900), expected(100, 900));
  EXPECT_EQ(pair.read("shmem-3", 0, 20), expected(0, 20));
  EXPECT_TRUE(read_pagemap(pair.there, "8")->empty());
  EXPECT_EQ(std::ranges::count_if(*pair.there.list(), [](const auto& name) { return name.starts_with("pages-"); }), 3);
  EXPECT_THAT(*pair.here.list(), Not(Contains(HasSubstr("pages-"))));
  EXPECT_THAT(*pair.here.list(), Contains("sent-pagemap-7.img"));
}

TEST_P(EveryForm, IncrementsReferToWhatTheServerHas) {
  Scratch scratch;
  Pair first(scratch, "1", GetParam()), second(scratch, "2", GetParam());
  first.begin();
  ASSERT_TRUE(write_pages(first.here, "7", 1, runs_of({{1, 100}}), contents));
  first.complete();
  std::ofstream(scratch.root() / "here-1/inventory.img");  // that would be the caller's
  ASSERT_TRUE(link_parent(second.there, "../there-1"));
  second.begin();
  const auto parent = ParentImages::open(second.here, "../here-1");
  ASSERT_TRUE(parent) << parent.error().message();
  ASSERT_TRUE((*parent)->read_all());
  const auto* sent = *(*parent)->stored("7");
  ASSERT_NE(sent, nullptr);
  const AddressRange unchanged[] = {{10 * page_size, 60 * page_size}};
  const auto increment = increment_of(runs_of({{1, 100}}), unchanged, *sent);
  EXPECT_EQ(total_size(increment.in_parent), 40 * page_size) << "pages of zeros are in no parent";
  FakePages anew([](uint64_t page) { return static_cast<uint8_t>(page + 1); });
  const auto written = write_pages(second.here, "7", 1, increment.changed, anew, increment.in_parent);
  ASSERT_TRUE(written) << written.error().message();
  second.complete();
  EXPECT_EQ(second.read("7", 11, 4), expected(11, 4)) << "from the parent";
  Bytes bytes(4 * page_size);
  ASSERT_TRUE(anew.read(70 * page_size, bytes));
  EXPECT_EQ(second.read("7", 70, 4), bytes);
}

INSTANTIATE_TEST_SUITE_P(RemotePages, EveryForm, testing::Values("", "zstd", "lz4"),
                         [](const auto& info) { return info.param.empty() ? "plain" : info.param; });

TEST(RemotePages, AnIncrementWithoutParentsThereIsRefused) {
  for (const char* compression : {"", "zstd"}) {
    Scratch scratch;
    Pair pair(scratch, "1", compression);
    pair.begin();
    const auto written = write_pages(pair.here, "7", 1, runs_of({{1, 2}}), contents, runs_of({{2, 3}}));
    ASSERT_FALSE(written);
    EXPECT_THAT(written.error().message(), HasSubstr("--prev-images-dir"));
    EXPECT_FALSE(write_pages(pair.here, "8", 1, runs_of({{1, 2}}), contents)) << "the server waits for the first";
    EXPECT_FALSE(pair.remote->complete());
    pair.here.store_pages_in(nullptr);
    pair.remote.reset();
    EXPECT_FALSE(pair.received.get());
    EXPECT_THAT(*pair.there.list(), testing::IsEmpty());
  }
}

TEST(RemotePages, SharedMemoryOfAServerIsSentAnew) {
  Scratch scratch;
  Pair pair(scratch, "1");
  pair.begin();
  ASSERT_TRUE(write_pages(pair.here, "7", 1, runs_of({{1, 4}}), contents));
  pair.complete();
  std::ofstream(scratch.root() / "here-1/inventory.img");
  const auto next = scratch.directory("here-2");
  const auto parent = ParentImages::open(next, "../here-1");
  ASSERT_TRUE(parent);
  const auto increment = compare_with(**parent, "7", runs_of({{1, 4}}), contents);
  ASSERT_TRUE(increment) << increment.error().message();
  EXPECT_EQ(total_size(increment->changed), 3 * page_size);
}

TEST(RemotePages, AServerThatDoesNotKnowBlocksIsNamed) {
  Scratch scratch;
  auto directory = scratch.directory();
  directory.compress(*parse_compression("zstd"));
  // It answers the first question and leaves at the second, as criu does.
  const auto begun =
      RemotePages::begin(std::make_unique<MemoryStream>(Bytes(4)), directory, RemotePages::Ending::close);
  ASSERT_FALSE(begun);
  EXPECT_THAT(begun.error().message(), HasSubstr("--compress"));
}

TEST(RemotePages, AnotherProgramIsNotTakenForAPageServer) {
  Scratch scratch;
  const auto directory = scratch.directory();
  const Bytes alert = {0x15, 0x03, 0x01, 0x00, 0x02, 0x02, 0x0a};  // what a server of TLS says
  const auto begun = RemotePages::begin(std::make_unique<MemoryStream>(alert), directory, RemotePages::Ending::close);
  ASSERT_FALSE(begun);
  EXPECT_THAT(begun.error().message(), HasSubstr("--tls"));
}

TEST(RemotePages, AnAnswerThatSaysFailureIsAnError) {
  Scratch scratch;
  const auto directory = scratch.directory();
  Bytes answers(4);
  answers.insert(answers.end(), 4, 0xff);
  const auto begun = RemotePages::begin(std::make_unique<MemoryStream>(answers), directory, RemotePages::Ending::close);
  ASSERT_TRUE(begun);
  const auto completed = (*begun)->complete();
  ASSERT_FALSE(completed);
  EXPECT_THAT(completed.error().message(), HasSubstr("answers -1"));
}

}  // namespace
}  // namespace stasis::memory
