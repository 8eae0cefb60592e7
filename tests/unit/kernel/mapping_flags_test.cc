#include "kernel/mapping_flags.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernel/process.h"

namespace stasis::kernel {
namespace {

VmFlags named(std::initializer_list<std::string_view> names) {
  VmFlags flags;
  for (const auto name : names) flags.insert(name);
  return flags;
}

TEST(FlagNames, ABitHasTheNameThatStandsWhereItIsSet) {
  const auto names = FlagNames::learn(
      {{0b001, {named({"rd"}), 0}}, {0b011, {named({"rd", "wr"}), 0}}, {0b101, {named({"rd", "dc"}), 0}}});
  const auto both = names.of(0b111);
  ASSERT_TRUE(both);
  EXPECT_EQ(both->names, named({"rd", "wr", "dc"}));
  EXPECT_EQ(names.of(0b001)->names, named({"rd"}));
}

TEST(FlagNames, KeysAreBitsToo) {
  const auto names =
      FlagNames::learn({{0x1, {named({"rd"}), 0}}, {0x11, {named({"rd"}), 1}}, {0x21, {named({"rd"}), 2}}});
  EXPECT_EQ(names.of(0x31)->protection_key, 3);
  EXPECT_EQ(names.of(0x1)->protection_key, 0);
}

TEST(FlagNames, WhatWasNotSeenIsNotKnown) {
  const auto names = FlagNames::learn({{0b001, {named({"rd"}), 0}}, {0b111, {named({"rd", "wr", "dc"}), 0}}});
  EXPECT_FALSE(names.of(0b1001)) << "a bit that no sample had";
  EXPECT_FALSE(names.of(0b011)) << "which of two bits has which name cannot be told";
  EXPECT_EQ(names.of(0b111)->names, named({"rd", "wr", "dc"}));
}

TEST(FlagNames, ContradictionsTellNothing) {
  const auto names = FlagNames::learn({{0b01, {named({"rd"}), 0}}, {0b01, {named({"rd", "wr"}), 0}}});
  EXPECT_FALSE(names.of(0b01));
}

TEST(FlagNames, BitsWithoutNamesAreNoObstacle) {
  const auto names = FlagNames::learn({{0b01, {named({"rd"}), 0}}, {0b11, {named({"rd"}), 0}}});
  EXPECT_EQ(names.of(0b11)->names, named({"rd"}));
}

/// A child that stands still, with mappings of all kinds and much memory in one of them.
class Subject {
 public:
  Subject() {
    pid_ = fork();
    if (pid_ != 0) {
      waitpid(pid_, nullptr, WUNTRACED);
      return;
    }
    const auto map = [](int protection, int flags) {
      return mmap(nullptr, 16 * page_size, protection, flags | MAP_ANONYMOUS, -1, 0);
    };
    for (const int advice : {MADV_DONTFORK, MADV_WIPEONFORK, MADV_DONTDUMP, MADV_NOHUGEPAGE, MADV_RANDOM}) {
      void* memory = map(PROT_READ | PROT_WRITE, MAP_PRIVATE);
      madvise(memory, page_size, advice);
      madvise(static_cast<char*>(memory) + page_size, page_size, MADV_DONTFORK);
    }
    mlock(map(PROT_READ, MAP_PRIVATE), page_size);
    map(PROT_READ | PROT_WRITE, MAP_SHARED);
    map(PROT_NONE, MAP_PRIVATE | MAP_NORESERVE);
    const int file = open("/etc/passwd", O_RDONLY);
    mmap(nullptr, page_size, PROT_READ, MAP_SHARED, file, 0);
    mmap(nullptr, page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    if (const int key = pkey_alloc(0, 0); key > 0)
      pkey_mprotect(map(PROT_READ, MAP_PRIVATE), page_size, PROT_READ, key);
    raise(SIGSTOP);
    _exit(0);
  }
  ~Subject() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = 0;
};

TEST(MappingFlags, AreThoseOfSmaps) {
  const auto flags = MappingFlags::open();
  if (!flags) GTEST_SKIP() << flags.error().message();
  const Subject subject;
  const auto expected = read_smaps(subject.pid());
  const auto ranges = flags->ranges(subject.pid());
  const auto entries = flags->read(subject.pid());
  ASSERT_TRUE(expected && ranges && entries);
  ASSERT_EQ(entries->size(), expected->size());
  size_t seen = 0, understood = 0;
  for (size_t index = 0; index < expected->size(); ++index) {
    const auto &entry = (*entries)[index], &wanted = (*expected)[index];
    EXPECT_EQ(entry.range, wanted.range);
    EXPECT_EQ(entry.vm_flags, wanted.vm_flags) << wanted.path << " at " << std::hex << wanted.range.begin;
    EXPECT_EQ(entry.protection_key, wanted.protection_key);
    EXPECT_EQ(entry.kernel_page_size, wanted.kernel_page_size);
    EXPECT_TRUE(entry.has_vm_flags);
  }
  for (const auto& [range, bits] : *ranges) {
    ++seen;
    const auto meaning = flags->names().of(bits);
    if (meaning) ++understood;
  }
  EXPECT_EQ(understood, seen) << "all of these flags can be learnt: nobody has to count pages";
}

TEST(MappingFlags, OfNobodyAreAnError) {
  const auto flags = MappingFlags::open();
  if (!flags) GTEST_SKIP() << flags.error().message();
  EXPECT_FALSE(flags->read(0x3ffffff));
}

}  // namespace
}  // namespace stasis::kernel
