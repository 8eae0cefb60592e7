// Pages for those who ask.
#include "memory/page_sender.h"

#include <gmock/gmock.h>
#include <sys/socket.h>

#include <future>

#include "memory_stream.h"
#include "scratch.h"

namespace stasis::memory {
namespace {

using testing::HasSubstr;

struct Sender : testing::Test {
  Scratch scratch;
  image::Directory directory = scratch.directory();

  void SetUp() override {
    write_pagemap(directory, "7", 1, {{0x1000, 2}, {0x10000, 1}, {0x20000, 1, 0}});
    write_page_file(directory, 1, {1, 2, 3});
  }
  void refuses(const Script& script, const std::string& reason) {
    MemoryStream stream(script.bytes());
    const auto served = PageSender(directory).serve(stream);
    ASSERT_FALSE(served);
    EXPECT_THAT(served.error().message(), HasSubstr(reason));
  }
};

TEST_F(Sender, GivesWhatIsStored) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  const auto client = plain_stream(UniqueFd(ends[0])), server = plain_stream(UniqueFd(ends[1]));
  auto serving = std::async(std::launch::async, [&]() -> Status {
    TRY(PageSender(directory).serve(*server));
    return server->finish();
  });
  Bytes buffer(4 * page_size);
  EXPECT_EQ(*fetch_pages(*client, 7, 0x1000, buffer), 2u) << "as far as the run goes";
  EXPECT_EQ(buffer[0], 1);
  EXPECT_EQ(buffer[2 * page_size - 1], 2);
  EXPECT_EQ(*fetch_pages(*client, 7, 0x2000, std::span(buffer).first(page_size)), 1u);
  EXPECT_EQ(buffer[0], 2);
  EXPECT_EQ(*fetch_pages(*client, 7, 0x10000, buffer), 1u);
  EXPECT_EQ(buffer[0], 3);
  EXPECT_EQ(*fetch_pages(*client, 7, 0x3000, buffer), 0u) << "zeros are not stored";
  EXPECT_EQ(*fetch_pages(*client, 7, 0x20000, buffer), 0u);
  EXPECT_TRUE(end_fetching(*client));
  EXPECT_TRUE(serving.get());
}

TEST_F(Sender, RefusesWhatIsNoQuestion) {
  refuses(Script(), "without a word");
  refuses(Script().say(wire::get_pages, 1, 0x1001, 7), "vaddr");
  refuses(Script().say(wire::get_pages, 0, 0x1000, 7), "nr_pages");
  refuses(Script().say(wire::get_pages, 1, 0x1000, 8), "no task 8");
  refuses(Script().say(wire::get_pages, 1, 0x1000, UINT64_MAX), "no task");
  refuses(Script().say(wire::open_memory, 0, 0, 7 << 8 | 1), "none for a server");
}

TEST_F(Sender, AHostileServerIsNotBelieved) {
  Bytes buffer(2 * page_size);
  constexpr uint32_t given = wire::add_flagged | 4 << wire::flag_shift;
  for (const auto& answer : {Script().say(given, 3, 0x1000, 7), Script().say(given, 1, 0x2000, 7),
                             Script().say(given, 1, 0x1000, 8), Script().say(wire::open_memory, 1, 0x1000, 7)}) {
    MemoryStream stream(answer.bytes());
    EXPECT_FALSE(fetch_pages(stream, 7, 0x1000, buffer));
  }
  MemoryStream cut(Script().say(given, 1, 0x1000, 7).say(Bytes(page_size - 1)).bytes());
  EXPECT_FALSE(fetch_pages(cut, 7, 0x1000, buffer));
}

}  // namespace
}  // namespace stasis::memory
