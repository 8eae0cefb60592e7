// The layout of an agent area, and the blob that stands at its beginning.
#include <elf.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/sched.h>
#include <sys/syscall.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "agent_room.h"

namespace stasis::agent {
namespace {

using plan::call;

TEST(Area, BeginsWithTheCodeAndTheHeader) {
  const auto area = build_area(0x10000, {SlotProgram(EndMode::park), SlotProgram(EndMode::exit_thread)}, 7);
  ASSERT_TRUE(area);
  EXPECT_TRUE(std::ranges::equal(blob(), ByteView(area->bytes).first(blob().size())));
  Header header;
  std::memcpy(&header, area->bytes.data() + code_space, sizeof header);
  EXPECT_EQ(header.magic, magic);
  EXPECT_EQ(header.version, abi_version);
  EXPECT_EQ(header.area_size, area->size);
  EXPECT_EQ(header.slot_count, 2u);
  EXPECT_EQ(header.counter_count, 7u);
  EXPECT_EQ(header.failed, 0u);
  EXPECT_EQ(area->bytes.size() % page_size, 0u);
}

TEST(Area, PartsDoNotOverlap) {
  std::vector<SlotProgram> programs;
  for (int i = 0; i < 5; ++i) {
    programs.emplace_back(EndMode::park, 4096);
    for (int j = 0; j < 3; ++j) programs.back().call(call(SYS_read, 0, plan::Out{100}, 100), 0);
    programs.back().set_leave_code(Bytes(70, 0x90));
  }
  const auto area = build_area(0x10000, programs, 3);
  ASSERT_TRUE(area);
  std::vector<AddressRange> parts{{0, code_space + sizeof(Header)}, {area->counters, area->counters + 12}};
  for (const auto& place : area->slots) {
    Slot slot;
    std::memcpy(&slot, area->bytes.data() + place.slot, sizeof slot);
    parts.push_back({place.slot, place.slot + sizeof(Slot)});
    parts.push_back({slot.stack_top - 4096, slot.stack_top});
    parts.push_back({slot.instructions, slot.instructions + slot.instruction_count * sizeof(Instruction)});
    parts.push_back({slot.results, slot.results + slot.instruction_count * sizeof(int64_t)});
    parts.push_back({slot.leave_code, slot.leave_code + 70});
    for (const auto& out : place.outs) parts.push_back({out.offset, out.offset + out.size});
    EXPECT_EQ(slot.stack_top % 16, 0u);
  }
  std::ranges::sort(parts);
  for (size_t i = 1; i < parts.size(); ++i) EXPECT_LE(parts[i - 1].end, parts[i].begin) << i;
  EXPECT_LE(parts.back().end, area->size);
}

TEST(Area, KnowsWhereEveryInstructionComesFrom) {
  SlotProgram program(EndMode::park);
  program.call(call(SYS_getpid), 4);
  program.wait(1, 2, 9);
  program.post(1, 1, 0, 9);
  EXPECT_EQ(program.first_of(9), 1u);
  EXPECT_EQ(program.first_of(5), std::nullopt);
  const auto area = build_area(0, {program}, 2);
  ASSERT_TRUE(area);
  EXPECT_THAT(area->slots[0].origins, testing::ElementsAre(4, 9, 9));
}

TEST(Area, GivesAChildTheStackOfItsSlotAndItsIds) {
  constexpr uint64_t base = 0x400000000000;
  SlotProgram parent(EndMode::park), child(EndMode::park, 2048);
  parent.spawn(CLONE_NEWPID, SIGCHLD, {1, 4711}, 1, 0);
  const auto area = build_area(base, {parent, child}, 1);
  ASSERT_TRUE(area);
  Slot slots[2];
  for (int i = 0; i < 2; ++i) std::memcpy(&slots[i], area->bytes.data() + area->slots[i].slot, sizeof(Slot));
  Instruction spawn;
  std::memcpy(&spawn, area->bytes.data() + slots[0].instructions, sizeof spawn);
  clone_args arguments;
  std::memcpy(&arguments, area->bytes.data() + spawn.args[0], sizeof arguments);
  EXPECT_EQ(arguments.flags, static_cast<uint64_t>(CLONE_NEWPID));
  EXPECT_EQ(arguments.exit_signal, static_cast<uint64_t>(SIGCHLD));
  EXPECT_EQ(arguments.stack + arguments.stack_size, base + slots[1].stack_top);
  ASSERT_EQ(arguments.set_tid_size, 2u);
  int32_t ids[2];
  std::memcpy(ids, area->bytes.data() + (arguments.set_tid - base), sizeof ids);
  EXPECT_THAT(ids, testing::ElementsAre(1, 4711));
}

TEST(Area, LeavesAChildWithoutAStackOfItsOwnOnACopyOfItsParents) {
  SlotProgram parent(EndMode::park), child(EndMode::exit_thread, 0);
  parent.spawn(0, 0, {}, 1, 0);
  const auto area = build_area(0x400000000000, {parent, child}, 1);
  ASSERT_TRUE(area);
  Slot slot;
  std::memcpy(&slot, area->bytes.data() + area->slots[0].slot, sizeof slot);
  Instruction spawn;
  std::memcpy(&spawn, area->bytes.data() + slot.instructions, sizeof spawn);
  clone_args arguments;
  std::memcpy(&arguments, area->bytes.data() + spawn.args[0], sizeof arguments);
  EXPECT_EQ(arguments.stack, 0u);
  EXPECT_EQ(arguments.stack_size, 0u);
}

TEST(Area, RefusesToSpawnASlotThatIsNotThere) {
  SlotProgram parent(EndMode::park);
  parent.spawn(0, SIGCHLD, {}, 5, 0);
  const auto area = build_area(0, {parent}, 1);
  ASSERT_FALSE(area);
  EXPECT_EQ(area.error().code(), ErrorCode::internal);
}

// ---- the blob's proof

TEST(BlobProof, FitsItsSpaceAndMakesSystemCalls) {
  ASSERT_FALSE(blob().empty());
  EXPECT_LE(blob().size(), code_space);
  constexpr uint8_t syscall_instruction[] = {0x0f, 0x05};
  EXPECT_NE(std::ranges::search(blob(), syscall_instruction).begin(), blob().end());
}

/// Builds a damaged agent with the script that the build uses: it must say no.
class BrokenAgent : public testing::Test {
 protected:
  BrokenAgent() {
    std::string pattern = (std::filesystem::temp_directory_path() / "stasis-agent-XXXXXX").string();
    root_ = mkdtemp(pattern.data());
    const std::filesystem::path source = STASIS_SOURCE_DIR;
    std::filesystem::copy(source / "agent", root_ / "agent", std::filesystem::copy_options::recursive);
    std::filesystem::create_directory(root_ / "build");
  }
  ~BrokenAgent() override { std::filesystem::remove_all(root_); }

  void append(const std::string& code) const { std::ofstream(root_ / "agent/agent.cc", std::ios::app) << code; }
  std::string build() const {
    const std::string log = (root_ / "log").string();
    const std::string command = std::string(STASIS_SOURCE_DIR) + "/scripts/build-agent g++ " + root_.string() + " " +
                                (root_ / "build").string() +
                                " -std=c++20 -Os -ffreestanding -fPIE -fno-exceptions -fno-rtti -fno-stack-protector "
                                "-fno-asynchronous-unwind-tables -fcf-protection=none -fno-jump-tables "
                                "-mgeneral-regs-only -fno-threadsafe-statics -fvisibility=hidden > " +
                                log + " 2>&1";
    outcome_ = std::system(command.c_str());
    std::ifstream stream(log);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  bool accepted() const { return outcome_ == 0; }

 private:
  std::filesystem::path root_;
  mutable int outcome_ = -1;
};

TEST_F(BrokenAgent, TheUndamagedOneIsAccepted) {
  const auto log = build();
  EXPECT_TRUE(accepted()) << log;
  EXPECT_THAT(log, testing::HasSubstr("bytes, no relocations, no libc"));
}

TEST_F(BrokenAgent, UseOfTheLibraryIsRefused) {
  append("extern \"C\" int getpid(); extern \"C\" int broken() { return getpid(); }\n");
  const auto log = build();
  EXPECT_FALSE(accepted());
  EXPECT_THAT(log, testing::HasSubstr("getpid"));
}

TEST_F(BrokenAgent, AddressesInDataAreRefused) {
  append(
      "extern \"C\" const char* broken(int i) { static const char* const names[] = {\"a\", \"b\", \"c\"}; return "
      "names[i]; }\n");
  build();
  EXPECT_FALSE(accepted());
}

TEST_F(BrokenAgent, WritableDataIsRefused) {
  append("extern \"C\" int broken() { static int calls = 1; return ++calls; }\n");
  build();
  EXPECT_FALSE(accepted());
}

}  // namespace
}  // namespace stasis::agent
