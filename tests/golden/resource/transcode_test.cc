// Images made by CRIU 4.2, read into an Application, written as images of ours, and read again: nothing is lost, and
// what is written is what CRIU reads (the fields that it requires are there; done by hand with its restore as well).
#include <gmock/gmock.h>

#include "core.pb.h"
#include "criu_images.h"
#include "inventory.pb.h"
#include "memory/pages.h"
#include "model/difference.h"
#include "plan/lazy_memory.h"
#include "resource/codec.h"
#include "resource/network_facts.h"

namespace stasis::resource {
namespace {

/// Pages as they lie in the images that were decoded.
class StoredMemory : public ApplicationMemory {
 public:
  StoredMemory(const model::Application& application, const image::Directory& directory)
      : owners_(address_space_owners(application)), directory_(directory) {}
  Result<std::unique_ptr<memory::PageSource>> address_space(ObjectId id) override {
    return TRY(memory::ImagePages::open(directory_, std::to_string(owners_.at(id).value)));
  }
  Result<std::unique_ptr<memory::PageSource>> shared_memory(ObjectId id) override {
    return TRY(memory::ImagePages::open(directory_, fmt::format("shmem-{}", id)));
  }

 private:
  std::map<ObjectId, Pid> owners_;
  const image::Directory& directory_;
};

/// Runs that touch are one run: CRIU ends them where a mapping ends.
model::Application joined(model::Application application) {
  for (auto& [id, space] : application.address_spaces) {
    std::vector<model::PageRun> runs;
    for (const auto& run : space.pages) {
      if (!runs.empty() && runs.back().range.end == run.range.begin)
        runs.back().range.end = run.range.end;
      else
        runs.push_back(run);
    }
    space.pages = std::move(runs);
  }
  return application;
}

using Transcode = CriuImages;

TEST_F(Transcode, LosesNothing) {
  const auto first = decode(*theirs);
  ASSERT_TRUE(first) << first.error().message();
  const auto* before = &first->application;
  ASSERT_EQ(before->tasks.size(), 3u);
  StoredMemory memory(*before, *theirs);
  uint64_t seen = 0, whole = 0;
  const EncodeOptions options{.progress = [&](uint64_t done, uint64_t total) { seen = done, whole = total; }};
  const auto stats = encode(*before, memory, *ours, options);
  ASSERT_TRUE(stats) << stats.error().message();
  EXPECT_EQ(seen, whole);
  EXPECT_EQ(stats->pages_written, (299008 + 122880 + 122880) / page_size);
  EXPECT_FALSE(decode(*ours)) << "not a checkpoint before it is committed";
  ASSERT_TRUE(commit(*before, *ours));
  const auto second = decode(*ours);
  ASSERT_TRUE(second) << second.error().message();
  const auto* after = &second->application;
  EXPECT_THAT(model::differences(*before, *after), testing::IsEmpty());
  EXPECT_TRUE(joined(*before) == joined(*after));
  for (const char* file : {"pages-1.img", "pages-2.img", "pages-3.img"})
    EXPECT_EQ(bytes(std::string("theirs/") + file), bytes(std::string("ours/") + file)) << file;
}

TEST_F(Transcode, WhatIsLeftOutIsTheSameApplication) {
  const auto application = decode(*theirs)->application;
  StoredMemory memory(application, *theirs);
  const auto stats = encode(application, memory, *ours, {.left_out = plan::pages_that_can_wait(application)});
  ASSERT_TRUE(stats) << stats.error().message();
  EXPECT_GT(stats->pages_left_out, 0u);
  ASSERT_TRUE(commit(application, *ours));
  const auto again = decode(*ours);
  ASSERT_TRUE(again) << again.error().message();
  EXPECT_THAT(model::differences(application, again->application), testing::IsEmpty());
  uint64_t elsewhere = 0;
  for (const auto& [id, locations] : again->pages) {
    for (const auto& location : locations) elsewhere += location.is_elsewhere() ? location.range.size() : 0;
  }
  EXPECT_EQ(elsewhere, stats->pages_left_out * page_size);
}

/// CRIU would bring the thread back to life: it must not take such images for its own.
TEST_F(Transcode, ALeaderThatHasEndedIsSaidAndTheImagesAreNotForCriu) {
  auto application = decode(*theirs)->application;
  auto& task = application.tasks.front();
  task.threads.push_back(task.threads.front());
  task.threads.back().tid = Tid{40000};
  auto& ended = task.threads.front();
  ended.exit_status = 7 << 8;
  ended.registers = {}, ended.clear_child_tid = 0;
  StoredMemory memory(application, *theirs);
  ASSERT_TRUE(encode(application, memory, *ours));
  ASSERT_TRUE(commit(application, *ours));
  inventory_entry inventory;
  ASSERT_TRUE(ours->read("inventory.img")->single(inventory));
  EXPECT_GT(inventory.img_version(), 2u);
  const auto again = decode(*ours);
  ASSERT_TRUE(again) << again.error().message();
  EXPECT_THAT(model::differences(application, again->application), testing::IsEmpty());
  EXPECT_EQ(again->application.tasks.front().threads.front().exit_status, 7 << 8);
}

/// CRIU knows one personality of each process, and nothing of what its core dumps contain.
TEST_F(Transcode, PersonalitiesOfOtherThreadsAreSaidWhereTheyDiffer) {
  auto application = decode(*theirs)->application;
  auto& task = application.tasks.front();
  for (const int tid : {40000, 40001}) {
    task.threads.push_back(task.threads.front());
    task.threads.back().tid = Tid{tid};
  }
  task.threads[0].personality = task.threads[1].personality = 0x20000;
  task.threads[2].personality = 0x40000;
  auto& space = application.address_spaces.at(task.address_space);
  EXPECT_FALSE(space.coredump_filter.has_value());
  space.coredump_filter = 0x7f;
  StoredMemory memory(application, *theirs);
  ASSERT_TRUE(encode(application, memory, *ours));
  ASSERT_TRUE(commit(application, *ours));
  const auto core_of = [&](Tid tid) {
    core_entry core;
    EXPECT_TRUE(ours->read(fmt::format("core-{}.img", tid))->single(core));
    return core;
  };
  EXPECT_EQ(core_of(task.threads[0].tid).tc().personality(), 0x20000u);
  EXPECT_FALSE(core_of(Tid{40000}).thread_core().has_personality());
  EXPECT_EQ(core_of(Tid{40001}).thread_core().personality(), 0x40000u);
  const auto again = decode(*ours);
  ASSERT_TRUE(again) << again.error().message();
  EXPECT_THAT(model::differences(application, again->application), testing::IsEmpty());
  EXPECT_TRUE(joined(application) == joined(again->application));
}

TEST_F(Transcode, PagesAreFoundWhereTheyLie) {
  const auto decoded = decode(*theirs);
  ASSERT_TRUE(decoded) << decoded.error().message();
  EXPECT_EQ(decoded->pages.size(), 3u);
  for (const auto& [id, locations] : decoded->pages) {
    uint64_t offset = 0;
    for (const auto& location : locations) {
      EXPECT_EQ(location.offset, offset);
      offset += location.range.size();
      EXPECT_TRUE(std::filesystem::exists(root_ / "theirs" / location.file));
    }
  }
}

}  // namespace
}  // namespace stasis::resource
