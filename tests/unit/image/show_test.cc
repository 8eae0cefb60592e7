#include "image/show.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "core.pb.h"
#include "fdinfo.pb.h"
#include "ids.pb.h"
#include "mm.pb.h"
#include "namespaces.pb.h"
#include "pagemap.pb.h"
#include "pstree.pb.h"
#include "scratch.h"

namespace stasis::image {
namespace {

using testing::AllOf;
using testing::HasSubstr;

ByteView view(std::string_view text) { return {reinterpret_cast<const uint8_t*>(text.data()), text.size()}; }

TEST(Show, Base64HasLinesOfSeventySix) {
  EXPECT_EQ(base64(view("")), "");
  EXPECT_EQ(base64(view("f")), "Zg==\n");
  EXPECT_EQ(base64(view("fo")), "Zm8=\n");
  EXPECT_EQ(base64(view("foo")), "Zm9v\n");
  const std::string long_text(58, 'a');
  EXPECT_EQ(base64(view(long_text)).find('\n'), 76u);
  EXPECT_EQ(base64(view(std::string(57, 'a'))).size(), 77u);
}

TEST(Show, NumbersBecomeWhatTheyMean) {
  vma_entry vma;
  vma.set_start(0x1000);
  vma.set_end(0x3000);
  vma.set_pgoff(16);
  vma.set_shmid(0);
  vma.set_prot(5);
  vma.set_flags(0x100022);
  vma.set_status(513);
  vma.set_fd(-1);
  EXPECT_EQ(to_json(vma).dump(),
            R"({"start":"0x1000","end":"0x3000","pgoff":16,"shmid":0,"prot":"PROT_READ | PROT_EXEC",)"
            R"("flags":"MAP_PRIVATE | MAP_ANON | 0x100000","status":"VMA_AREA_REGULAR | VMA_ANON_PRIVATE","fd":-1})");
}

TEST(Show, ShowsSocketsByName) {
  inet_sk_entry socket;
  socket.set_family(2);
  socket.set_type(1);
  socket.set_proto(6);
  socket.set_state(10);
  socket.add_src_addr(0x0100007f);
  auto json = to_json(socket);
  EXPECT_EQ(json["family"], "INET");
  EXPECT_EQ(json["type"], "STREAM");
  EXPECT_EQ(json["proto"], "TCP");
  EXPECT_EQ(json["state"], "LISTEN");
  EXPECT_EQ(json["src_addr"].dump(), R"(["127.0.0.1"])");
  socket.clear_src_addr();
  for (const uint32_t word : {0u, 0u, 0u, 0x01000000u}) socket.add_src_addr(word);
  EXPECT_EQ(to_json(socket)["src_addr"].dump(), R"(["::1"])");
}

TEST(Show, UnixNamesAreQuotedPrintable) {
  unix_sk_entry socket;
  socket.set_name(std::string("\0a=b\xff ", 6));
  EXPECT_EQ(to_json(socket)["name"], "=00a=3Db=FF=20");
}

TEST(Show, AFieldKeepsTheNameThatCppCannotHave) {
  signalfd_entry entry;
  entry.set_signal_mask(0x10);
  EXPECT_EQ(to_json(entry)["sigmask"], "0x10");
}

class ShowTest : public Scratch {
 protected:
  template <typename... Records>
  void write(const std::string& file, const Records&... records) {
    auto writer = directory->create(file);
    ASSERT_TRUE(writer) << writer.error().message();
    [[maybe_unused]] const auto append = [&](const auto& record) {
      if constexpr (std::is_convertible_v<decltype(record), std::string_view>)
        ASSERT_TRUE(writer->append_raw(view(record)));
      else
        ASSERT_TRUE(writer->append(record));
    };
    (append(records), ...);
    ASSERT_TRUE(writer->finish());
  }

  nlohmann::json shown(std::string_view file) {
    const auto text = show_file(*directory, file, false);
    EXPECT_TRUE(text) << text.error().message();
    return text ? nlohmann::json::parse(*text) : nlohmann::json();
  }
};

TEST_F(ShowTest, PipesHaveTheirDataAsExtra) {
  pipe_data_entry entry;
  entry.set_pipe_id(3);
  entry.set_bytes(5);
  write("pipes-data.img", entry, std::string_view("hello"));
  EXPECT_EQ(shown("pipes-data.img").dump(),
            R"({"entries":[{"bytes":5,"extra":"aGVsbG8=\n","pipe_id":3}],"magic":"PIPES_DATA"})");
}

TEST_F(ShowTest, PagemapsHaveAHead) {
  pagemap_head head;
  head.set_pages_id(1);
  pagemap_entry entry;
  entry.set_vaddr(0x7000);
  entry.set_compat_nr_pages(2);
  entry.set_flags(6);
  write("pagemap-7.img", head, entry);
  EXPECT_EQ(shown("pagemap-7.img")["entries"].dump(),
            R"([{"pages_id":1},{"compat_nr_pages":2,"flags":"PE_LAZY | PE_PRESENT","vaddr":"0x7000"}])");
}

TEST_F(ShowTest, GhostFilesComeWholeOrInChunks) {
  ghost_file_entry ghost;
  ghost.set_uid(0);
  ghost.set_gid(0);
  ghost.set_mode(0100644);
  write("ghost-file-1f.img", ghost, std::string_view("content"));
  EXPECT_EQ(shown("ghost-file-1f.img")["entries"][0]["extra"], "Y29udGVudA==\n");
  ghost.set_chunks(true);
  ghost_chunk_entry chunk;
  chunk.set_len(3);
  chunk.set_off(4096);
  write("ghost-file-1f.img", ghost, chunk, std::string_view("abc"), chunk, std::string_view("def"));
  const auto entries = shown("ghost-file-1f.img")["entries"];
  ASSERT_EQ(entries.size(), 3u);
  EXPECT_EQ(entries[2]["extra"], "ZGVm\n");
}

TEST_F(ShowTest, SemaphoresAreNumbersAndPadded) {
  ipc_sem_entry set;
  auto& description = *set.mutable_desc();
  for (const auto* field : {"key", "uid", "gid", "cuid", "cgid", "mode", "id"}) {
    const auto* number = description.GetDescriptor()->FindFieldByName(field);
    ASSERT_TRUE(number) << field;
    description.GetReflection()->SetUInt32(&description, number, 1);
  }
  set.set_nsems(3);
  write("ipcns-sem-10.img", set, std::string_view("\1\0\2\0\3\0\0\0", 8), set, std::string_view("\4\0\5\0\6\0\0\0", 8));
  EXPECT_EQ(shown("ipcns-sem-10.img")["entries"][1]["extra"].dump(), "[4,5,6]");
}

TEST_F(ShowTest, ARenamedImageIsKnownByItsMagic) {
  pstree_entry entry;
  entry.set_pid(7);
  entry.set_ppid(0);
  entry.set_pgid(7);
  entry.set_sid(7);
  write("pstree.img", entry);
  std::filesystem::rename(path("pstree.img"), path("saved-elsewhere"));
  EXPECT_EQ(shown("saved-elsewhere")["magic"], "PSTREE");
  put("nonsense", "nonsense");
  EXPECT_FALSE(show_file(*directory, "nonsense"));
}

TEST_F(ShowTest, NamesThatAreNotUtf8DoNotBreakJson) {
  file_entry file;
  file.set_type(REG);
  file.set_id(1);
  auto& reg = *file.mutable_reg();
  reg.set_id(1);
  reg.set_flags(0);
  reg.set_pos(0);
  reg.set_name("/tmp/\xff\xfe");
  auto& owner = *reg.mutable_fown();
  owner.set_uid(0);
  owner.set_euid(0);
  owner.set_signum(0);
  owner.set_pid_type(0);
  owner.set_pid(0);
  write("files.img", file);
  EXPECT_EQ(shown("files.img")["entries"][0]["reg"]["name"], "/tmp/\ufffd\ufffd");
}

TEST_F(ShowTest, ADirectoryIsOneObject) {
  EXPECT_FALSE(show_directory(*directory));
  write("pstree.img");
  put("pages-1.img", std::string(4096, 'x'));
  put("unrelated.img", "?");
  EXPECT_EQ(*show_directory(*directory, false),
            R"({"pages-1.img":{"magic":"RAW_IMAGE","size":4096},"pstree.img":{"magic":"PSTREE","entries":[]}})");
}

class TreeTest : public ShowTest {
 protected:
  static pstree_entry task(uint32_t pid, uint32_t parent) {
    pstree_entry entry;
    entry.set_pid(pid);
    entry.set_ppid(parent);
    entry.set_pgid(pid);
    entry.set_sid(1);
    entry.add_threads(pid);
    return entry;
  }
  static core_entry core(const std::string& name, uint32_t state, uint32_t exit_code = 0) {
    core_entry entry;
    entry.set_mtype(core_entry::X86_64);
    auto& tc = *entry.mutable_tc();
    tc.set_task_state(state);
    tc.set_exit_code(exit_code);
    tc.set_personality(0);
    tc.set_flags(0);
    tc.set_blk_sigset(0);
    tc.set_comm(name);
    return entry;
  }
};

TEST_F(TreeTest, DrawsTasks) {
  write("pstree.img", task(1, 0), task(2, 1), task(3, 1));
  write("core-1.img", core("init", 1));
  write("core-2.img", core("gone\x1b[2J", 2, 3 << 8));
  write("core-3.img", core("job", 3));
  EXPECT_EQ(show_tree(*directory).value_or("?"),
            "1  init  group 1, session 1\n"
            "├── 2  gone\\x1b[2J  zombie, exit status 3\n"
            "└── 3  job  stopped  group 3, session 1\n");
}

TEST_F(TreeTest, SaysWherePagesAre) {
  write("pstree.img", task(1, 0));
  write("core-1.img", core("init", 1));
  task_kobj_ids_entry ids;
  ids.set_vm_id(1), ids.set_files_id(1), ids.set_fs_id(1), ids.set_sighand_id(1);
  write("ids-1.img", ids);
  mm_entry memory;
  for (const auto set :
       {&mm_entry::set_mm_start_code, &mm_entry::set_mm_end_code, &mm_entry::set_mm_start_data,
        &mm_entry::set_mm_end_data, &mm_entry::set_mm_start_stack, &mm_entry::set_mm_start_brk, &mm_entry::set_mm_brk,
        &mm_entry::set_mm_arg_start, &mm_entry::set_mm_arg_end, &mm_entry::set_mm_env_start, &mm_entry::set_mm_env_end})
    (memory.*set)(0);
  memory.set_exe_file_id(1);
  write("mm-1.img", memory);
  pagemap_head head;
  head.set_pages_id(1);
  std::vector<pagemap_entry> entries;
  for (const uint32_t flags : {4u, 1u, 2u, 6u}) {
    auto& entry = entries.emplace_back();
    entry.set_vaddr(entries.size() << 20);
    entry.set_nr_pages(flags);
    entry.set_compat_nr_pages(flags);
    entry.set_flags(flags);
  }
  write("pagemap-1.img", head, entries[0], entries[1], entries[2], entries[3]);
  EXPECT_THAT(show_tree(*directory).value_or("?"),
              HasSubstr("40.0 KiB stored, 4.0 KiB in the parent image, 8.0 KiB left out (dump --lazy-pages)"));
}

TEST_F(TreeTest, RefusesCyclesAndDuplicates) {
  write("pstree.img", task(1, 0), task(2, 3), task(3, 2));
  EXPECT_THAT(show_tree(*directory).error().message(),
              AllOf(HasSubstr("pstree.img"), HasSubstr("ppid"), HasSubstr("ancestors")));
  write("pstree.img", task(1, 0), task(1, 0));
  EXPECT_THAT(show_tree(*directory).error().message(), AllOf(HasSubstr("field pid"), HasSubstr("twice")));
}

}  // namespace
}  // namespace stasis::image
