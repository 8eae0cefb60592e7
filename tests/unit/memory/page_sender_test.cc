// Pages for those who ask, and those who ask for them.
#include "memory/page_sender.h"

#include <gmock/gmock.h>
#include <sys/socket.h>

#include <cstring>
#include <future>
#include <memory>

#include "memory/page_fetcher.h"
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

/// What the answer to a question for so many pages has: how many, and their first bytes.
std::vector<int> fetch(PageFetcher& fetcher, uint64_t address, uint64_t pages, pid_t task = 7) {
  EXPECT_TRUE(fetcher.ask({.task = task, .address = address, .length = pages * page_size}));
  const auto answer = fetcher.receive();
  std::vector<int> values;
  for (uint64_t at = 0; answer && at < answer->bytes.size(); at += page_size) values.push_back(answer->bytes[at]);
  return values;
}

TEST_F(Sender, GivesWhatIsStored) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  PageFetcher fetcher(plain_stream(UniqueFd(ends[0])));
  const auto server = plain_stream(UniqueFd(ends[1]));
  int begun = 0;
  auto serving = std::async(std::launch::async, [&]() -> Status {
    PageSender sender(directory);
    sender.before_first([&]() -> Status { return ++begun, Status{}; });
    TRY(sender.serve(*server));
    EXPECT_EQ(sender.bytes_given(), 4 * page_size);
    return server->finish();
  });
  EXPECT_EQ(fetch(fetcher, 0x1000, 4), (std::vector{1, 2})) << "as far as the run goes";
  EXPECT_EQ(fetch(fetcher, 0x2000, 1), std::vector{2});
  EXPECT_EQ(fetch(fetcher, 0x10000, 4), std::vector{3});
  EXPECT_TRUE(fetcher.end());
  EXPECT_TRUE(serving.get());
  EXPECT_EQ(begun, 1);
}

TEST_F(Sender, HasNoZeros) {
  for (const uint64_t address : {0x3000, 0x20000, 0x100000}) {
    MemoryStream stream(Script().say(wire::get_pages, 1, address, 7).say(wire::close).bytes());
    ASSERT_TRUE(PageSender(directory).serve(stream));
    wire::Header answer;
    ASSERT_EQ(stream.answers.size(), sizeof answer + sizeof(int32_t));
    std::memcpy(&answer, stream.answers.data(), sizeof answer);
    EXPECT_EQ(answer.count, 0u);
  }
}

TEST_F(Sender, IsNotBegunByNonsense) {
  MemoryStream stream(Script().say(wire::get_pages, 1, 0x1001, 7).bytes());
  PageSender sender(directory);
  sender.before_first([]() -> Status { return ADD_FAILURE(), Status{}; });
  EXPECT_FALSE(sender.serve(stream));
}

TEST_F(Sender, RefusesWhatIsNoQuestion) {
  refuses(Script(), "without a word");
  refuses(Script().say(wire::get_pages, 1, 0x1001, 7), "vaddr");
  refuses(Script().say(wire::get_pages, 0, 0x1000, 7), "nr_pages");
  refuses(Script().say(wire::get_pages, 1, 0x1000, 8), "no task 8");
  refuses(Script().say(wire::get_pages, 1, 0x1000, UINT64_MAX), "no task");
  refuses(Script().say(wire::open_memory, 0, 0, 7 << 8 | 1), "none for a server");
}

TEST(Fetcher, DoesNotBelieveAHostileServer) {
  constexpr uint32_t given = wire::add_flagged | 4 << wire::flag_shift;
  const Bytes page(page_size);
  const auto refuses = [&](const Script& script, const std::string& reason) {
    PageFetcher fetcher(std::make_unique<MemoryStream>(script.bytes()));
    ASSERT_TRUE(fetcher.ask({.task = 7, .address = 0x1000, .length = 2 * page_size}));
    const auto answer = fetcher.receive();
    ASSERT_FALSE(answer);
    EXPECT_THAT(answer.error().message(), HasSubstr(reason));
  };
  refuses(Script().say(given, 3, 0x1000, 7).say(page).say(page).say(page), "nothing to do with the question");
  refuses(Script().say(given, UINT64_MAX, 0x1000, 7).say(page), "nothing to do with the question");
  refuses(Script().say(given, 1, 0x2000, 7).say(page), "nothing to do with the question");
  refuses(Script().say(given, 1, 0x1000, 8).say(page), "nothing to do with the question");
  refuses(Script().say(given, 1, 0x1000, uint64_t{1} << 32 | 7).say(page), "nothing to do with the question");
  refuses(Script().say(wire::open_memory, 1, 0x1000, 7).say(page), "nothing to do with the question");
  refuses(Script().say(given, 0, 0x1000, 7), "does not have the pages");
  refuses(Script().say(given, 1, 0x1000, 7).say(Bytes(page_size - 1)), "in the middle");
  refuses(Script().say(Bytes(5)), "in the middle");
  refuses(Script(), "has ended the connection");
}

TEST(Fetcher, WantsNothingThatItHasNotAskedFor) {
  PageFetcher fetcher(std::make_unique<MemoryStream>(Script().say(wire::add_flagged, 1, 0x1000, 7).bytes()));
  const auto answer = fetcher.receive();
  ASSERT_FALSE(answer);
  EXPECT_THAT(answer.error().message(), HasSubstr("nobody has asked for"));
}

/// Both sides may be writing: questions must not fill the buffers between them.
TEST(Fetcher, HasAlwaysRoomForFaults) {
  PageFetcher fetcher(std::make_unique<MemoryStream>(Bytes()));
  while (fetcher.has_room(false)) ASSERT_TRUE(fetcher.ask({.task = 7, .address = 0x1000, .length = 64 << 10}));
  size_t faults = 0;
  for (; fetcher.has_room(true); ++faults)
    ASSERT_TRUE(fetcher.ask({.task = 7, .address = 0x1000, .length = page_size}));
  EXPECT_GE(faults, 32u);
  EXPECT_LE(faults, 64u);
}

/// Two questions at once: the answers are told apart, and one may have less than was wanted.
TEST(Fetcher, RemembersWhatItHasAskedFor) {
  constexpr uint32_t given = wire::add_flagged | 4 << wire::flag_shift;
  Script script;
  script.say(given, 1, 0x1000, 7).say(Bytes(page_size, 1)).say(given, 1, 0x9000, 8).say(Bytes(page_size, 2));
  PageFetcher fetcher(std::make_unique<MemoryStream>(script.say(Bytes(sizeof(int32_t))).bytes()));
  ASSERT_TRUE(fetcher.ask({.whose = 1, .to = 0x5000, .task = 7, .address = 0x1000, .length = 2 * page_size}));
  ASSERT_TRUE(fetcher.ask({.whose = 2, .to = 0x9000, .task = 8, .address = 0x9000, .length = page_size}));
  auto answer = fetcher.receive();
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->wanted.whose, 1u);
  EXPECT_EQ(answer->wanted.to, 0x5000u);
  EXPECT_EQ(answer->bytes.size(), page_size);
  EXPECT_EQ(answer->bytes[0], 1);
  EXPECT_TRUE(fetcher.is_waiting());
  answer = fetcher.receive();
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->wanted.whose, 2u);
  EXPECT_EQ(answer->bytes[0], 2);
  EXPECT_FALSE(fetcher.is_waiting());
  EXPECT_TRUE(fetcher.end());
}

}  // namespace
}  // namespace stasis::memory
