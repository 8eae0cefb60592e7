#include "image/names.h"

#include <gtest/gtest.h>

#include <set>

#include "image/show.h"

namespace stasis::image {
namespace {

TEST(Names, EveryKindIsFoundByItsOwnName) {
  for (const FileKind& kind : file_kinds()) {
    const bool numbered = kind.pattern.find("{}") != std::string_view::npos;
    const std::string name = numbered ? file_name(kind.pattern, 31) : file_name(kind.pattern);
    const auto parsed = parse_name(name);
    ASSERT_TRUE(parsed) << name;
    EXPECT_EQ(parsed->kind->pattern, kind.pattern) << name;
    EXPECT_EQ(parsed->id.has_value(), numbered) << name;
    if (numbered) {
      EXPECT_EQ(*parsed->id, 31u) << name;
    }
  }
}

TEST(Names, EveryKindHasItsRecords) {
  for (const FileKind& kind : file_kinds()) {
    if (kind.raw()) continue;
    EXPECT_TRUE(new_record(kind.message)) << kind.message;
    EXPECT_TRUE(kind.head.empty() || new_record(kind.head)) << kind.head;
  }
}

TEST(Names, AreTheOnesOfCriu) {
  EXPECT_EQ(file_name("core-{}", 7), "core-7.img");
  EXPECT_EQ(file_name("pagemap-shmem-{}", 12), "pagemap-shmem-12.img");
  EXPECT_EQ(file_name("ghost-file-{}", 31), "ghost-file-1f.img");
  EXPECT_EQ(file_name("files"), "files.img");
  EXPECT_EQ(file_name("stats-dump"), "stats-dump");
  EXPECT_EQ(file_name("tmpfs-{}.tar.gz", 3), "tmpfs-3.tar.gz.img");
}

TEST(Names, TellSimilarKindsApart) {
  EXPECT_EQ(parse_name("pagemap-12.img")->kind->pattern, "pagemap-{}");
  EXPECT_EQ(parse_name("pagemap-shmem-12.img")->kind->pattern, "pagemap-shmem-{}");
  EXPECT_EQ(parse_name("binfmt-misc.img")->kind->pattern, "binfmt-misc");
  EXPECT_TRUE(parse_name("pages-1.img")->kind->raw());
  EXPECT_EQ(parse_name("ghost-file-1f.img")->id, 31u);
}

TEST(Names, RejectWhatNoDumpWrites) {
  for (const char* name : {"", ".img", "core-.img", "core-7", "core-07.img", "core-+7.img", "core--7.img",
                           "core-7x.img", "core-1f.img", "core-99999999999999999999.img", "files-1.img", "../files.img",
                           "stats-dump.img", "core-{}.img", "Core-7.img"}) {
    EXPECT_FALSE(parse_name(name)) << name;
  }
}

TEST(Names, AMagicNamesOneKindOfRecord) {
  for (const FileKind& kind : file_kinds()) {
    if (kind.raw()) continue;
    ASSERT_NE(find_kind(kind.magic), nullptr);
    EXPECT_EQ(find_kind(kind.magic)->message, kind.message) << kind.pattern;
  }
  EXPECT_EQ(find_kind(0), nullptr);
  EXPECT_EQ(find_kind(0x12345678), nullptr);
}

}  // namespace
}  // namespace stasis::image
