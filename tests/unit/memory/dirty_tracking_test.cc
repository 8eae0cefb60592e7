// Asynchronous write protection as this kernel has it, in the test's own address space: what ends the protection of a
// page must make it count as written.
#include "memory/dirty_tracking.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include <gtest/gtest.h>

#include "memory/keeper.h"

namespace stasis::memory {
namespace {

using kernel::page_is_file;
using kernel::page_is_present;
using kernel::page_is_swapped;
using kernel::page_is_wp_allowed;
using kernel::page_is_written;

UniqueFd own_pagemap() { return UniqueFd(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)); }

UniqueFd make_userfaultfd() {
  return UniqueFd(static_cast<int>(syscall(kernel::userfaultfd_call, kernel::userfaultfd_flags)));
}

class Tracking : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(descriptor_.fd() >= 0);
    const Status begun = descriptor_.begin_tracking();
    if (!begun) GTEST_SKIP() << begun.error().message();
    for (size_t i = 0; i < count; ++i) at_[i * page_size] = 1;
  }
  void TearDown() override { munmap(at_, count * page_size); }

  static char* map(void* where, int flags, int fd = -1) {
    return static_cast<char*>(mmap(where, count * page_size, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | flags | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0));
  }
  AddressRange range() const { return {address(), address() + count * page_size}; }
  uint64_t address(size_t page = 0) const { return reinterpret_cast<uint64_t>(at_) + page * page_size; }
  void begin_round() {
    const auto done = protect_own_pages(descriptor_, pagemap_.get(), {{range()}});
    ASSERT_TRUE(done) << done.error().message();
  }
  /// A letter for each page: '-' no page of its own, 'u' unchanged, 'W' written or not tracked.
  std::string state(bool is_anonymous = true) const {
    std::string text;
    for (size_t page = 0; page < count; ++page) {
      const auto found = kernel::scan_pages(pagemap_.get(), {address(page), address(page + 1)}, page_is_file,
                                            page_is_present | page_is_swapped, page_is_file,
                                            page_is_wp_allowed | page_is_written | page_is_present);
      EXPECT_TRUE(found) << found.error().message();
      if (!found || found->empty())
        text += '-';
      else
        text += is_unchanged(found->front().categories, is_anonymous) ? 'u' : 'W';
    }
    return text;
  }

  static constexpr size_t count = 4;
  kernel::Userfaultfd descriptor_{make_userfaultfd()};
  UniqueFd pagemap_ = own_pagemap();
  char* at_ = map(nullptr, 0);
};

TEST_F(Tracking, a_write_counts) {
  EXPECT_EQ(state(), "WWWW");
  begin_round();
  EXPECT_EQ(state(), "uuuu");
  at_[2 * page_size] = 2;
  EXPECT_EQ(state(), "uuWu");
  begin_round();
  EXPECT_EQ(state(), "uuuu");
  const char byte = 3;
  iovec local{const_cast<char*>(&byte), 1}, remote{at_ + page_size, 1};
  ASSERT_EQ(process_vm_writev(getpid(), &local, 1, &remote, 1, 0), 1);
  EXPECT_EQ(state(), "uWuu") << "from outside";
}

TEST_F(Tracking, what_is_discarded_and_written_again_counts) {
  begin_round();
  ASSERT_EQ(madvise(at_ + page_size, page_size, MADV_DONTNEED), 0);
  EXPECT_EQ(state(), "u-uu");
  at_[page_size] = 2;
  EXPECT_EQ(state(), "uWuu");
}

TEST_F(Tracking, what_is_mapped_anew_in_its_place_counts) {
  begin_round();
  ASSERT_EQ(map(at_, MAP_FIXED), at_);
  at_[0] = 1;
  EXPECT_EQ(state(), "W---");
}

TEST_F(Tracking, what_is_moved_counts_there_and_back_again) {
  begin_round();
  char* elsewhere = map(nullptr, 0);
  ASSERT_EQ(mremap(at_, count * page_size, count * page_size, MREMAP_MAYMOVE | MREMAP_FIXED, elsewhere), elsewhere);
  ASSERT_EQ(mremap(elsewhere, count * page_size, count * page_size, MREMAP_MAYMOVE | MREMAP_FIXED, at_), at_);
  EXPECT_EQ(state(), "WWWW");
}

TEST_F(Tracking, protections_do_not_matter) {
  begin_round();
  ASSERT_EQ(mprotect(at_, count * page_size, PROT_NONE), 0);
  EXPECT_EQ(state(), "uuuu");
  ASSERT_EQ(mprotect(at_, count * page_size, PROT_READ | PROT_WRITE), 0);
  EXPECT_EQ(state(), "uuuu");
  at_[0] = 2;
  EXPECT_EQ(state(), "Wuuu");
}

TEST_F(Tracking, a_forked_child_is_not_tracked_and_its_parent_goes_on) {
  begin_round();
  const pid_t child = fork();
  if (child == 0) {
    pagemap_ = own_pagemap();
    _exit(state() == "WWWW" ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(state(), "uuuu");
  at_[0] = 2;
  EXPECT_EQ(state(), "Wuuu") << "copied on write, too";
}

TEST_F(Tracking, what_is_discarded_of_a_file_does_not_look_unchanged) {
  const UniqueFd file(static_cast<int>(syscall(SYS_memfd_create, "file", 0)));
  ASSERT_EQ(ftruncate(file.get(), count * page_size), 0);
  ASSERT_EQ(map(at_, MAP_FIXED, file.get()), at_);
  at_[0] = at_[page_size] = 1;
  begin_round();
  EXPECT_EQ(state(false), "uu--");
  ASSERT_EQ(madvise(at_, page_size, MADV_DONTNEED), 0);
  EXPECT_NE(state(false)[0], 'u');
  EXPECT_EQ(at_[0], 0);
}

TEST_F(Tracking, a_write_into_a_huge_page_counts) {
  constexpr size_t huge = 2 << 20;
  auto* whole = static_cast<char*>(mmap(nullptr, 2 * huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(whole, MAP_FAILED);
  madvise(whole, 2 * huge, MADV_HUGEPAGE);
  std::memset(whole, 1, 2 * huge);
  const AddressRange where{reinterpret_cast<uint64_t>(whole), reinterpret_cast<uint64_t>(whole) + 2 * huge};
  ASSERT_TRUE(protect_own_pages(descriptor_, pagemap_.get(), {{where}}));
  whole[huge + page_size] = 2;
  const auto written = protect_own_pages(descriptor_, pagemap_.get(), {{where}});
  ASSERT_TRUE(written);
  const bool told = std::ranges::any_of(
      *written, [&](const AddressRange& range) { return range.contains(where.begin + huge + page_size); });
  EXPECT_TRUE(told);
  const auto again = protect_own_pages(descriptor_, pagemap_.get(), {{where}});
  ASSERT_TRUE(again);
  EXPECT_TRUE(again->empty());
  munmap(whole, 2 * huge);
}

TEST_F(Tracking, the_end_of_the_descriptor_ends_it) {
  begin_round();
  descriptor_ = kernel::Userfaultfd(UniqueFd());
  EXPECT_EQ(state(), "WWWW");
  at_[0] = 2;
}

TEST_F(Tracking, somebody_elses_userfaultfd_is_foreign) {
  const kernel::Userfaultfd other(make_userfaultfd());
  ASSERT_TRUE(other.begin_tracking());
  begin_round();
  const auto registered = other.register_range(range());
  ASSERT_TRUE(registered);
  EXPECT_EQ(*registered, kernel::Userfaultfd::Registration::foreign);
}

TEST_F(Tracking, a_tracker_is_known_by_what_it_does) {
  begin_round();
  Trackers trackers;
  const auto* ours = trackers.add({"7", std::move(descriptor_)});
  const pid_t child = fork();
  if (child == 0) {  // another address space, with the same addresses
    pagemap_ = own_pagemap();
    kernel::Userfaultfd its(make_userfaultfd());
    if (!its.begin_tracking() || !protect_own_pages(its, pagemap_.get(), {{range()}})) _exit(1);
    const auto nobody = trackers.find(pagemap_.get(), address(1), "7");
    if (!nobody || *nobody != nullptr) _exit(2);
    const auto* added = trackers.add({"8", std::move(its)});
    const auto found = trackers.find(pagemap_.get(), address(1), "7");
    _exit(found && *found == added ? 0 : 3);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  const auto found = trackers.find(pagemap_.get(), address(1), "9");
  ASSERT_TRUE(found) << found.error().message();
  EXPECT_EQ(*found, ours);
  EXPECT_EQ(state(), "uWuu") << "asking never makes a page unchanged";
}

TEST_F(Tracking, a_keeper_keeps_it) {
  begin_round();
  auto keeper = Keeper::start(getpid());
  ASSERT_TRUE(keeper) << keeper.error().message();
  Trackers trackers;
  trackers.add({"7", std::move(descriptor_)});
  ASSERT_TRUE(keeper->begin());
  ASSERT_TRUE(keeper->commit("a round", trackers));
  EXPECT_FALSE(Keeper::start(getpid())) << "there is one";
  {
    const Keeper gone = std::move(*keeper);
    trackers = {};
  }
  EXPECT_EQ(state(), "uuuu");

  auto found = Keeper::find(getpid());
  ASSERT_TRUE(found && *found);
  {
    const auto kept = (*found)->fetch();
    ASSERT_TRUE(kept) << kept.error().message();
    EXPECT_EQ(kept->round, "a round");
    ASSERT_EQ(kept->trackers.all().size(), 1u);
    EXPECT_EQ(kept->trackers.all().front()->suffix, "7");
  }
  ASSERT_TRUE((*found)->stop());
  EXPECT_EQ(state(), "WWWW");
  const auto none = Keeper::find(getpid());
  ASSERT_TRUE(none);
  EXPECT_FALSE(*none);
  EXPECT_EQ(wait(nullptr) > 0, true) << "our child";
}

TEST_F(Tracking, a_keeper_without_a_round_ends_with_its_caller) {
  begin_round();
  {
    auto keeper = Keeper::start(getpid());
    ASSERT_TRUE(keeper);
    Trackers trackers;
    trackers.add({"7", std::move(descriptor_)});
    ASSERT_TRUE(keeper->begin());
    ASSERT_TRUE(keeper->commit("a round", trackers));
    ASSERT_TRUE(keeper->begin()) << "and here the caller dies";
  }
  ASSERT_GT(wait(nullptr), 0);
  EXPECT_EQ(state(), "WWWW");
}

}  // namespace
}  // namespace stasis::memory
