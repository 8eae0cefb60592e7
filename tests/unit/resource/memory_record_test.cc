// mm_entry as CRIU writes it, and as somebody hostile does.
#include "resource/memory_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

namespace stasis::resource {
namespace {

using model::Backing;
using testing::HasSubstr;

class MemoryRecord : public testing::Test {
 protected:
  MemoryRecord() {
    for (const int number : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}) {
      const auto* field = record.GetDescriptor()->FindFieldByNumber(number);
      if (number == 12)
        record.set_exe_file_id(3);
      else
        record.GetReflection()->SetUInt64(&record, field, 0x400000);
    }
  }
  vma_entry& add(uint64_t start, uint64_t end, uint32_t status, uint32_t flags = MAP_PRIVATE | MAP_ANONYMOUS,
                 uint64_t shmid = 0) {
    auto& entry = *record.add_vmas();
    entry.set_start(start);
    entry.set_end(end);
    entry.set_pgoff(0);
    entry.set_shmid(shmid);
    entry.set_prot(PROT_READ | PROT_WRITE);
    entry.set_flags(flags);
    entry.set_status(status);
    entry.set_fd(-1);
    return entry;
  }
  std::string decode() {
    application = {};
    space = {};
    const auto status = decode_memory(record, "mm-7.img", application, space);
    return status ? "accepted" : status.error().message();
  }

  mm_entry record;
  model::Application application;
  model::AddressSpace space;
};

TEST_F(MemoryRecord, reads_what_criu_writes) {
  add(0x400000, 0x402000, 0x41, MAP_PRIVATE, 5).set_prot(PROT_READ);
  add(0x500000, 0x502000, 0x221);
  add(0x600000, 0x602000, 0x81, MAP_SHARED, 6);
  add(0x700000, 0x702000, 0x101, MAP_SHARED | MAP_ANONYMOUS, 9).set_pgoff(0x3000);
  add(0x7f0000000000, 0x7f0000004000, 0x1201).set_prot(PROT_READ);
  add(0x7f0000004000, 0x7f0000006000, 0x209).set_prot(PROT_READ | PROT_EXEC);
  add(0x7ffff0000000, 0x7ffff0020000, 0x201, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN);
  add(0xffffffffff600000, 0xffffffffff601000, 0x204).set_prot(PROT_EXEC);
  record.set_mm_start_stack(0x7ffff001f000);
  ASSERT_EQ(decode(), "accepted");
  std::vector<Backing> kinds;
  for (const auto& mapping : space.mappings) kinds.push_back(mapping.backing);
  EXPECT_EQ(kinds, (std::vector<Backing>{Backing::private_file, Backing::private_anonymous, Backing::shared_file,
                                         Backing::shared_anonymous, Backing::vvar, Backing::vdso,
                                         Backing::private_anonymous, Backing::vsyscall}));
  EXPECT_EQ(space.mappings[0].file, ObjectId{5});
  EXPECT_TRUE(space.mappings[1].is_heap);
  EXPECT_TRUE(space.mappings[6].is_stack);
  EXPECT_EQ(space.mappings[6].map_flags, uint32_t{MAP_GROWSDOWN});
  EXPECT_EQ(application.shared_memories.at(ObjectId{9}).size, 0x5000u);
  EXPECT_EQ(space.executable, ObjectId{3});
}

TEST_F(MemoryRecord, reads_rings_of_packet_sockets) {
  add(0x400000, 0x402000, 0x801, MAP_SHARED, 5);
  add(0x500000, 0x502000, 0x801, MAP_PRIVATE, 5);
  ASSERT_EQ(decode(), "accepted");
  EXPECT_EQ(space.mappings[0].backing, Backing::shared_file);
  EXPECT_EQ(space.mappings[1].backing, Backing::private_file);
  EXPECT_EQ(space.mappings[0].file, ObjectId{5});
}

TEST_F(MemoryRecord, rejects_impossible_ranges) {
  add(0x401000, 0x401000, 0x201);
  EXPECT_THAT(decode(), HasSubstr("no range of pages"));
  record.clear_vmas();
  add(0x401234, 0x402000, 0x201);
  EXPECT_THAT(decode(), HasSubstr("no range of pages"));
  record.clear_vmas();
  add(0x401000, 0xffffffffff600000, 0x201);
  EXPECT_THAT(decode(), HasSubstr("beyond user space"));
  record.clear_vmas();
  add(0x402000, 0x404000, 0x201);
  add(0x403000, 0x405000, 0x201);
  EXPECT_THAT(decode(), HasSubstr("vmas[1], field start"));
}

TEST_F(MemoryRecord, rejects_nonsense_in_mappings) {
  const auto rejection = [&](auto change) {
    record.clear_vmas();
    change(add(0x401000, 0x402000, 0x81, MAP_SHARED, 5));
    return decode();
  };
  EXPECT_THAT(rejection([](vma_entry& e) { e.set_status(0x281); }), HasSubstr("two kinds"));
  EXPECT_THAT(rejection([](vma_entry& e) { e.set_status(1); }), HasSubstr("no kind"));
  EXPECT_THAT(rejection([](vma_entry& e) { e.set_status(0x501); }), HasSubstr("System V"));
  EXPECT_THAT(rejection([](vma_entry& e) { e.set_prot(0x10000); }), HasSubstr("no protection"));
  EXPECT_THAT(rejection([](vma_entry& e) { e.set_pgoff(0x123); }), HasSubstr("pgoff"));
  EXPECT_THAT(rejection([](vma_entry& e) { e.set_pgoff(~uint64_t{0xfff}); }), HasSubstr("pgoff"));
  EXPECT_THAT(rejection([](vma_entry& e) { e.set_shmid(0); }), HasSubstr("no id"));
  EXPECT_THAT(rejection([](vma_entry& e) { e.set_shmid(uint64_t{1} << 40); }), HasSubstr("no id"));
  EXPECT_THAT(rejection([](vma_entry& e) { e.set_madv(uint64_t{1} << MADV_DONTNEED); }), HasSubstr("madv"));
  EXPECT_THAT(rejection([](vma_entry& e) { e.set_protection_key(16); }), HasSubstr("no key"));
  EXPECT_THAT(rejection([](vma_entry& e) { e.set_name(std::string(80, 'x')); }), HasSubstr("name"));
  EXPECT_THAT(rejection([](vma_entry& e) { e.set_status(0x101), e.set_segment_size(~uint64_t{0xfff}); }),
              HasSubstr("segment_size"));
  EXPECT_THAT(rejection([](vma_entry& e) { e.set_status(0x101), e.set_pgoff(uint64_t{1} << 60); }),
              HasSubstr("impossible"));
}

TEST_F(MemoryRecord, guards_lie_in_mappings) {
  add(0x401000, 0x405000, 0x201);
  add(0x405000, 0x408000, 0x201).set_prot(PROT_READ);
  add(0x404000, 0x406000, 1 << 16);
  ASSERT_EQ(decode(), "accepted");
  EXPECT_EQ(space.mappings[0].guards, (std::vector<AddressRange>{{0x404000, 0x405000}}));
  EXPECT_EQ(space.mappings[1].guards, (std::vector<AddressRange>{{0x405000, 0x406000}}));
  add(0x407000, 0x409000, 1 << 16);
  EXPECT_THAT(decode(), HasSubstr("nothing is mapped"));
}

TEST_F(MemoryRecord, rejects_impossible_layouts) {
  record.set_mm_brk(0x1000);
  EXPECT_THAT(decode(), HasSubstr("mm_brk"));
  record.set_mm_brk(0x400000);
  for (int i = 0; i < 514; ++i) record.add_mm_saved_auxv(1);
  EXPECT_THAT(decode(), HasSubstr("mm_saved_auxv"));
}

TEST_F(MemoryRecord, auxv_ends_at_its_end) {
  for (const uint64_t word : {3, 64, 0, 0, 0, 0, 0, 0}) record.add_mm_saved_auxv(word);
  ASSERT_EQ(decode(), "accepted");
  EXPECT_EQ(space.layout.auxv, (std::vector<uint64_t>{3, 64, 0, 0}));
}

}  // namespace
}  // namespace stasis::resource
