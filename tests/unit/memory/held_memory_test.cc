#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "kernel/process.h"
#include "memory/held_memory.h"
#include "memory/instant_pages.h"

namespace stasis::memory {
namespace {

constexpr size_t pages = 64, size = pages * page_size;

/// Memory of ours and a child that has a copy of it.
class HeldMemoryTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto possible = HeldMemory::is_possible(); !possible) GTEST_SKIP() << possible.error().message();
    void* mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(mapped, MAP_FAILED);
    memory_ = static_cast<uint8_t*>(mapped);
    std::memset(memory_, 'a', size);
    child_ = fork();
    ASSERT_GE(child_, 0);
    if (child_ == 0) {
      for (;;) pause();
    }
  }
  void TearDown() override {
    end_child();
    if (memory_ != nullptr) munmap(memory_, size);
  }
  void end_child() {
    if (child_ <= 0) return;
    kill(child_, SIGKILL);
    EXPECT_EQ(waitpid(child_, nullptr, 0), child_);
    child_ = 0;
  }
  uint64_t address() const { return reinterpret_cast<uint64_t>(memory_); }

  uint8_t* memory_ = nullptr;
  pid_t child_ = 0;
};

TEST_F(HeldMemoryTest, OutlivesItsProcessAndItsParentsChanges) {
  auto held = HeldMemory::hold(child_, RemoteAddress{address()});
  ASSERT_TRUE(held) << held.error().message();
  end_child();
  std::memset(memory_, 'b', size / 2);
  Bytes seen(size);
  const auto read = (*held)->read(address(), seen);
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(seen, Bytes(size, 'a'));

  const auto words = kernel::read_pagemap((*held)->pagemap(), {address(), address() + size});
  ASSERT_TRUE(words);
  size_t own = 0;
  for (const uint64_t word : *words) own += word >> 56 & 1;
  EXPECT_EQ(own, pages / 2);  // those that we have copied
}

TEST_F(HeldMemoryTest, WhoCannotBeReadCannotBeHeld) {
  const auto held = HeldMemory::hold(child_, RemoteAddress{page_size});
  ASSERT_FALSE(held);
  EXPECT_EQ(held.error().code(), ErrorCode::conflict);
}

TEST_F(HeldMemoryTest, OnceAbandonedItSaysWhy) {
  auto held = HeldMemory::hold(child_, RemoteAddress{address()});
  ASSERT_TRUE(held) << held.error().message();
  (*held)->abandon("no room");
  uint8_t byte = 0;
  const auto read = (*held)->read(address(), {&byte, 1});
  ASSERT_FALSE(read);
  EXPECT_NE(read.error().message().find("no room"), std::string::npos);
}

TEST_F(HeldMemoryTest, InstantPagesTakeWhatIsCopiedFromTheCopy) {
  // Pages 1 and 2, and the last one, are copied from us after the fork: they differ from the child's.
  std::memset(memory_, 'c', size);
  const auto page = [&](size_t index) { return address() + index * page_size; };
  auto copied = CopiedPages::copy(getpid(), {{page(1), page(3)}, {page(pages - 1), page(pages)}});
  ASSERT_TRUE(copied) << copied.error().message();
  EXPECT_EQ(copied->size(), 3 * page_size);
  auto held = HeldMemory::hold(child_, RemoteAddress{address()});
  ASSERT_TRUE(held) << held.error().message();
  end_child();
  std::memset(memory_, 'd', size);

  InstantPages instant(std::move(*copied), *held);
  Bytes seen(size);
  const auto read = instant.read(address(), seen);
  ASSERT_TRUE(read) << read.error().message();
  for (size_t index = 0; index < pages; ++index) {
    const bool from_copy = index == 1 || index == 2 || index == pages - 1;
    EXPECT_EQ(seen[index * page_size], from_copy ? 'c' : 'a') << index;
    EXPECT_EQ(seen[(index + 1) * page_size - 1], from_copy ? 'c' : 'a') << index;
  }
  Bytes middle(page_size);
  ASSERT_TRUE(instant.read(page(2), middle));
  EXPECT_EQ(middle, Bytes(page_size, 'c'));
}

TEST(InstantPages, WhatIsNowhereIsAnError) {
  InstantPages nothing({}, nullptr);
  uint8_t byte = 0;
  EXPECT_FALSE(nothing.read(page_size, {&byte, 1}));
}

}  // namespace
}  // namespace stasis::memory
