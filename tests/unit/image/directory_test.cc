#include "image/directory.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/stat.h>

#include "core.pb.h"
#include "fdinfo.pb.h"
#include "image/file_records.h"
#include "inventory.pb.h"
#include "pstree.pb.h"
#include "scratch.h"

namespace stasis::image {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

class DirectoryTest : public Scratch {
 protected:
  static pstree_entry task(uint32_t pid) {
    pstree_entry entry;
    entry.set_pid(pid);
    entry.set_ppid(0);
    entry.set_pgid(pid);
    entry.set_sid(pid);
    return entry;
  }

  void write(const std::string& file, std::initializer_list<pstree_entry> records) {
    auto writer = directory->create(file);
    ASSERT_TRUE(writer) << writer.error().message();
    for (const auto& record : records) ASSERT_TRUE(writer->append(record));
    ASSERT_TRUE(writer->finish());
  }

  /// The error of reading pstree.img to its end.
  std::string read_error() {
    auto reader = directory->read("pstree.img");
    if (!reader) return reader.error().message();
    for (pstree_entry record;;) {
      const auto more = reader->next(record);
      if (!more) return more.error().message();
      if (!*more) return "";
    }
  }
};

TEST_F(DirectoryTest, WritesMagicsLengthAndRecord) {
  write("pstree.img", {task(7)});
  EXPECT_EQ(get("pstree.img"), std::string("\x19\x43\x56\x54"
                                           "\x30\x30\x27\x50"
                                           "\x08\0\0\0"
                                           "\x08\x07\x10\0\x18\x07\x20\x07",
                                           20));
}

TEST_F(DirectoryTest, TheInventoryHasNoCommonMagic) {
  inventory_entry inventory;
  inventory.set_img_version(2);
  ASSERT_TRUE(directory->commit(inventory));
  EXPECT_EQ(get("inventory.img"), std::string("\x16\x31\x31\x58"
                                              "\x02\0\0\0"
                                              "\x08\x02",
                                              10));
  EXPECT_FALSE(std::filesystem::exists(path("inventory.img.tmp")));
}

TEST_F(DirectoryTest, ReadsBackWhatWasWritten) {
  write("pstree.img", {task(7), task(8)});
  auto reader = directory->read("pstree.img");
  ASSERT_TRUE(reader);
  pstree_entry record;
  EXPECT_TRUE(reader->next(record).value());
  EXPECT_EQ(record.pid(), 7u);
  EXPECT_TRUE(reader->next(record).value());
  EXPECT_EQ(record.pid(), 8u);
  EXPECT_FALSE(reader->next(record).value());
}

TEST_F(DirectoryTest, CarriesRawBytesBetweenRecords) {
  auto writer = directory->create("pipes-data.img");
  ASSERT_TRUE(writer);
  const Bytes large(200'000, 0x5a);
  for (uint32_t id : {1u, 2u}) {
    pipe_data_entry entry;
    entry.set_pipe_id(id);
    entry.set_bytes(static_cast<uint32_t>(large.size()));
    ASSERT_TRUE(writer->append(entry));
    ASSERT_TRUE(writer->append_raw(large));
  }
  ASSERT_TRUE(writer->finish());
  auto reader = directory->read("pipes-data.img");
  ASSERT_TRUE(reader);
  pipe_data_entry entry;
  ASSERT_TRUE(reader->next(entry).value());
  EXPECT_EQ(reader->raw(entry.bytes()).value(), large);
  ASSERT_TRUE(reader->next(entry).value());
  EXPECT_EQ(entry.pipe_id(), 2u);
  ASSERT_TRUE(reader->skip(entry.bytes()));
  EXPECT_FALSE(reader->next(entry).value());
  EXPECT_FALSE(reader->raw(1));
}

TEST_F(DirectoryTest, NamesTheMagicThatIsWrong) {
  put("pstree.img", std::string("\x19\x43\x56\x54"
                                "\x47\x38\x05\x55",
                                8));
  EXPECT_THAT(read_error(), AllOf(HasSubstr("pstree.img"), HasSubstr("0x55053847"), HasSubstr("PSTREE")));
  put("pstree.img", "abc");
  EXPECT_THAT(read_error(), HasSubstr("shorter than its magic"));
}

TEST_F(DirectoryTest, NamesRecordAndOffsetOfATruncation) {
  write("pstree.img", {task(7), task(8)});
  const std::string whole = get("pstree.img");
  put("pstree.img", whole.substr(0, whole.size() - 1));
  EXPECT_THAT(read_error(), AllOf(HasSubstr("pstree.img, record 1 at offset 20"), HasSubstr("beyond the end")));
  put("pstree.img", whole.substr(0, 22));
  EXPECT_THAT(read_error(), AllOf(HasSubstr("record 1 at offset 20"), HasSubstr("cut off")));
}

TEST_F(DirectoryTest, AllocatesNothingForALengthThatIsNotThere) {
  put("pstree.img", std::string("\x19\x43\x56\x54"
                                "\x30\x30\x27\x50"
                                "\xff\xff\xff\xff"
                                "\x08\x07",
                                14));
  EXPECT_THAT(read_error(), HasSubstr("4294967295 goes beyond the end of the file (2 bytes left)"));
}

TEST_F(DirectoryTest, RefusesARecordBeyondReason) {
  put("pstree.img", std::string("\x19\x43\x56\x54"
                                "\x30\x30\x27\x50"
                                "\x00\x00\x00\x10",
                                12));
  std::filesystem::resize_file(path("pstree.img"), 300 << 20);  // sparse
  EXPECT_THAT(read_error(), HasSubstr("268435456 is beyond reason"));
}

TEST_F(DirectoryTest, NamesAMissingField) {
  put("pstree.img", std::string("\x19\x43\x56\x54"
                                "\x30\x30\x27\x50"
                                "\x02\0\0\0"
                                "\x08\x07",
                                14));
  EXPECT_THAT(read_error(), AllOf(HasSubstr("pstree_entry lacks the field ppid"), HasSubstr("record 0 at offset 8")));
}

TEST_F(DirectoryTest, NamesTheFieldThatCannotBeRead) {
  core_entry core;
  // tc (3) of 4 bytes: task_state = 1, then comm (6) that claims 100 bytes.
  const std::string bytes("\x1a\x04\x08\x01\x32\x64", 6);
  const auto status = parse_record({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, core, "core-7.img");
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message(), AllOf(HasSubstr("core-7.img"), HasSubstr("field tc.comm")));
}

TEST_F(DirectoryTest, NestingIsLimited) {
  // A chain of cgroup directories inside each other, 100 deep.
  std::string bytes;
  for (int level = 0; level < 100; ++level) {
    std::string outer = "\x12";
    for (size_t rest = bytes.size();; rest >>= 7) {
      outer += static_cast<char>((rest & 0x7f) | (rest > 0x7f ? 0x80 : 0));
      if (rest <= 0x7f) break;
    }
    bytes = outer + bytes;
  }
  fdinfo_entry unrelated;
  EXPECT_FALSE(parse_record({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, unrelated, "x"));
}

TEST_F(DirectoryTest, AFileWithOneRecordHasOneRecord) {
  write("pstree.img", {task(7), task(8)});
  pstree_entry record;
  auto reader = directory->read("pstree.img");
  EXPECT_FALSE(reader->single(record));
  write("pstree.img", {});
  reader = directory->read("pstree.img");
  EXPECT_THAT(reader->single(record).error().message(), HasSubstr("no record"));
}

TEST_F(DirectoryTest, AFifoInPlaceOfAnImageDoesNotHang) {
  ASSERT_EQ(mkfifo(path("pstree.img").c_str(), 0600), 0);
  EXPECT_THAT(read_error(), HasSubstr("not a regular file"));
}

TEST_F(DirectoryTest, ADumpThatDiedHalfWayIsNoCheckpoint) {
  inventory_entry inventory;
  inventory.set_img_version(2);
  write("pstree.img", {task(7)});
  put("remap-fpath.img", "of the dump before");
  put("notes.txt", "not ours");
  put("holiday.img", "not ours either");
  ASSERT_TRUE(directory->commit(inventory));
  ASSERT_TRUE(directory->begin());
  EXPECT_FALSE(directory->has("inventory.img"));
  EXPECT_FALSE(directory->has("remap-fpath.img"));
  EXPECT_TRUE(directory->has("notes.txt"));
  EXPECT_TRUE(directory->has("holiday.img"));
}

TEST_F(DirectoryTest, ListsImagesInOrder) {
  put("b.img", "");
  put("a.img", "");
  put("stats-dump", "");
  EXPECT_THAT(directory->list().value(), ElementsAre("a.img", "b.img"));
  EXPECT_THAT(directory->list().value(), ElementsAre("a.img", "b.img"));
}

TEST_F(DirectoryTest, AWriterReportsAFullDisk) {
  Writer writer(UniqueFd(open("/dev/full", O_WRONLY | O_CLOEXEC)), "pstree.img");
  ASSERT_TRUE(writer.append(task(7)));
  const auto status = writer.finish();
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message(),
              AllOf(HasSubstr("pstree.img"), HasSubstr("No space left"), HasSubstr("free space")));
}

TEST_F(DirectoryTest, ARecordWithoutARequiredFieldIsNotWritten) {
  auto writer = directory->create("pstree.img");
  EXPECT_THAT(writer->append(pstree_entry()).error().message(), HasSubstr("pid"));
}

TEST_F(DirectoryTest, MissingDirectoryNamesTheOption) {
  EXPECT_THAT(Directory::open("/nonexistent/images").error().message(),
              AllOf(HasSubstr("/nonexistent/images"), HasSubstr("-D")));
}

TEST_F(DirectoryTest, SideImagesAreReadOnceAndSorted) {
  FileRecords written(*directory);
  for (uint32_t id : {2u, 1u}) {
    FileRecord record;
    record.set_type(PIPE);
    record.set_id(id);
    written.files.push_back(record);
    remap_file_path_entry remap;
    remap.set_orig_id(id);
    remap.set_remap_id(id);
    ASSERT_TRUE((*written.side("remap-fpath"))->append(remap));
  }
  ASSERT_TRUE(written.finish());
  FileRecords read(*directory);
  ASSERT_TRUE(read.load());
  ASSERT_EQ(read.loaded().size(), 2u);
  EXPECT_EQ(read.loaded().front()->id(), 1u);
  EXPECT_EQ(read.all<remap_file_path_entry>("remap-fpath")->size(), 2u);
  EXPECT_EQ(read.all<memfd_inode_entry>("memfd")->size(), 0u);
  EXPECT_FALSE(read.all<memfd_inode_entry>("remap-fpath"));
}

}  // namespace
}  // namespace stasis::image
