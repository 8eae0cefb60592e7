// Regular files, directories, devices, unlinked and remapped files: through a capture, images and a new process.
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <fstream>

#include "kernel/process.h"
#include "file_cycle.h"
#include "resource/file_identity.h"
#include "resource/ghost_file.h"
#include "resource/regular_file.h"

namespace stasis::resource {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;

class RegularFiles : public FileCycle {
 protected:
  std::string make(const std::string& name, const std::string& content) const {
    std::ofstream(work(name)) << content;
    return work(name);
  }
};

struct stat status_of(const std::string& path) {
  struct stat about{};
  EXPECT_EQ(stat(path.c_str(), &about), 0) << path << ": " << std::strerror(errno);
  return about;
}

std::string content_of(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST_F(RegularFiles, OffsetsFlagsAndSharing) {
  const auto path = make("file", "0123456789");
  cycle(
      [&] {
        const int file = open(path.c_str(), O_RDWR);
        REQUIRE(file == 3 && lseek(file, 4, SEEK_SET) == 4);
        REQUIRE(dup2(file, 50) == 50 && fcntl(file, F_DUPFD_CLOEXEC, 60) == 60);
        REQUIRE(open(path.c_str(), O_RDONLY) == 4 && lseek(4, 7, SEEK_SET) == 7);
        REQUIRE(open(path.c_str(), O_WRONLY | O_APPEND | O_NONBLOCK | O_SYNC | O_CLOEXEC) == 5);
        REQUIRE(open(path.c_str(), O_PATH) == 6);
        REQUIRE(open(path.c_str(), O_RDONLY | O_NOATIME | O_NOFOLLOW) == 7);
        REQUIRE(open(path.c_str(), O_RDONLY | O_DIRECT) == 8 || errno == EINVAL);
      },
      [](pid_t pid) {
        const auto position = [&](int fd) { return kernel::read_fdinfo(pid, fd)->position; };
        EXPECT_EQ(position(3), 4u);
        EXPECT_EQ(position(60), 4u);
        EXPECT_EQ(position(4), 7u);
        using kernel::KcmpType;
        EXPECT_EQ(*kernel::kcmp(pid, pid, KcmpType::file, 3, 50), std::strong_ordering::equal);
        EXPECT_NE(*kernel::kcmp(pid, pid, KcmpType::file, 3, 4), std::strong_ordering::equal);
      });
}

TEST_F(RegularFiles, Owners) {
  const auto path = make("file", "x");
  cycle([&] {
    REQUIRE(open(path.c_str(), O_RDWR) == 3 && fcntl(3, F_SETOWN, getpid()) == 0 && fcntl(3, F_SETSIG, SIGUSR1) == 0);
    REQUIRE(open(path.c_str(), O_RDWR) == 4 && fcntl(4, F_SETSIG, SIGUSR2) == 0);
    // The direct runner has no pid of the tree: an owner with one could not be set. It is captured all the same.
    REQUIRE(fcntl(3, F_SETOWN, 0) == 0);
  });
  Holder owner([&] { REQUIRE(open(path.c_str(), O_RDWR) == 3 && fcntl(3, F_SETOWN, getpid()) == 0); });
  const auto captured = capture(owner.pid());
  const auto id = captured->application.descriptor_tables.at(table).slots.at(3).description;
  EXPECT_EQ(captured->application.descriptions.at(id).owner.id, tree_pid);
}

TEST_F(RegularFiles, DirectoriesWithPosition) {
  for (int i = 0; i < 20; ++i) make(fmt::format("entry-{}", i), "");
  cycle([&] {
    REQUIRE(open(directory_.c_str(), O_RDONLY | O_DIRECTORY) == 3);
    REQUIRE(open(work("").c_str(), O_RDONLY | O_DIRECTORY) == 4);
    char some[128];
    REQUIRE(syscall(SYS_getdents64, 4, some, sizeof some) > 0);
    REQUIRE(lseek(4, 0, SEEK_CUR) > 0);
  });
}

TEST_F(RegularFiles, StatelessDevices) {
  cycle([] {
    const char* devices[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"};
    for (int i = 0; i < 5; ++i) REQUIRE(open(devices[i], i == 0 ? O_WRONLY : O_RDONLY) == 3 + i);
  });
}

TEST_F(RegularFiles, OtherDevicesAreRefused) {
  Holder holder([] { REQUIRE(open("/dev/kmsg", O_RDONLY | O_NONBLOCK) == 3); });
  const auto texts = refusals(*capture(holder.pid()));
  EXPECT_THAT(texts, Contains(HasSubstr("descriptor 3 → /dev/kmsg: a character device cannot be saved")));
}

TEST_F(RegularFiles, LocksAreRefused) {
  const auto path = make("file", "x");
  Holder holder([&] {
    REQUIRE(open(path.c_str(), O_RDWR) == 3);
    struct flock lock{};
    lock.l_type = F_WRLCK, lock.l_whence = SEEK_SET;
    REQUIRE(fcntl(3, F_SETLK, &lock) == 0);
  });
  EXPECT_THAT(refusals(*capture(holder.pid())), Contains(HasSubstr("a lock is held on it")));
}

TEST_F(RegularFiles, UnlinkedFilesComeBackWithContentOwnerTimesAndHoles) {
  cycle(
      [&] {
        REQUIRE(open(work("ghost").c_str(), O_CREAT | O_RDWR, 0612) == 3);
        REQUIRE(open(work("ghost").c_str(), O_RDONLY) == 4);
        REQUIRE(write(3, "ghost content", 13) == 13 && pwrite(3, "far", 3, 300'000) == 3);
        REQUIRE(ftruncate(3, 1 << 20) == 0);
        REQUIRE(fchown(3, 12, 34) == 0 && fchmod(3, 06712) == 0);
        const timespec times[2] = {{1'000'000'000, 123'456'789}, {1'100'000'000, 987'654'321}};
        REQUIRE(futimens(3, times) == 0);
        REQUIRE(unlink(work("ghost").c_str()) == 0);
      },
      [&](pid_t pid) {
        const auto about = status_of(fd_path(pid, 3));
        EXPECT_EQ(about.st_nlink, 0u);
        EXPECT_EQ(about.st_ino, status_of(fd_path(pid, 4)).st_ino);
        EXPECT_EQ(about.st_mode & 07777, 06712u);
        EXPECT_EQ(about.st_uid, 12u);
        EXPECT_EQ(about.st_gid, 34u);
        EXPECT_EQ(about.st_size, 1 << 20);
        EXPECT_LT(about.st_blocks * 512, 200'000);
        EXPECT_EQ(about.st_mtim.tv_nsec, 987'654'321);
        const auto content = content_of(fd_path(pid, 4));
        EXPECT_EQ(content.substr(0, 14), std::string("ghost content\0", 14));
        EXPECT_EQ(content.substr(299'999, 5), std::string("\0far\0", 5));
        EXPECT_EQ(*kernel::read_link(fd_path(pid, 3)), work("ghost") + " (deleted)");
        EXPECT_EQ(files_in_work(), 0u);
      });
}

TEST_F(RegularFiles, GhostsLargerThanTheLimitAreRefused) {
  policy.ghost_limit = 4096;
  Holder holder([&] {
    REQUIRE(open(work("ghost").c_str(), O_CREAT | O_RDWR, 0600) == 3);
    const std::string much(100'000, 'x');
    REQUIRE(write(3, much.data(), much.size()) == 100'000 && unlink(work("ghost").c_str()) == 0);
  });
  EXPECT_THAT(refusals(*capture(holder.pid())), Contains(HasSubstr("pass --ghost-limit 1M")));
}

TEST_F(RegularFiles, UnlinkedDirectoriesAndFilesThatWereInThem) {
  cycle(
      [&] {
        REQUIRE(mkdir(work("a").c_str(), 0750) == 0 && mkdir(work("a/b").c_str(), 0700) == 0);
        REQUIRE(open(work("a/b/file").c_str(), O_CREAT | O_RDWR, 0600) == 3 && write(3, "in b", 4) == 4);
        REQUIRE(open(work("a").c_str(), O_RDONLY | O_DIRECTORY) == 4);
        REQUIRE(unlink(work("a/b/file").c_str()) == 0 && rmdir(work("a/b").c_str()) == 0 &&
                rmdir(work("a").c_str()) == 0);
      },
      [&](pid_t pid) {
        EXPECT_EQ(content_of(fd_path(pid, 3)), "in b");
        EXPECT_EQ(*kernel::read_link(fd_path(pid, 3)), work("a/b/file") + " (deleted)");
        EXPECT_EQ(status_of(fd_path(pid, 4)).st_mode & 07777, 0750u);
        EXPECT_EQ(files_in_work(), 0u);
      });
}

TEST_F(RegularFiles, UnlinkedFilesWhoseNameIsTakenAgain) {
  const auto body = [&] {
    for (int fd = 3; fd < 6; ++fd) {
      REQUIRE(open(work("name").c_str(), O_CREAT | O_EXCL | O_RDWR, 0600) == fd);
      const char digit = static_cast<char>('0' + fd);
      REQUIRE(write(fd, &digit, 1) == 1 && unlink(work("name").c_str()) == 0);
    }
    REQUIRE(open(work("name").c_str(), O_CREAT | O_EXCL | O_RDWR, 0600) == 6 && write(6, "new", 3) == 3);
  };
  cycle(body, [&](pid_t pid) {
    for (int fd = 3; fd < 6; ++fd) EXPECT_EQ(content_of(fd_path(pid, fd)), std::to_string(fd));
    EXPECT_EQ(content_of(fd_path(pid, 6)), "new");
    EXPECT_EQ(content_of(work("name")), "new");
    EXPECT_EQ(files_in_work(), 1u);
  });
}

TEST_F(RegularFiles, TemporaryFilesWithoutAName) {
  cycle([&] {
    REQUIRE(open(work("").c_str(), O_TMPFILE | O_RDWR, 0600) == 3);
    REQUIRE(write(3, "temporary", 9) == 9);
  });
}

TEST_F(RegularFiles, LinkRemapKeepsTheInode) {
  policy.link_remap = true;
  ino_t inode = 0;
  cycle(
      [&] {
        REQUIRE(open(work("file").c_str(), O_CREAT | O_RDWR, 0600) == 3 && write(3, "content", 7) == 7);
        REQUIRE(open(work("file").c_str(), O_RDONLY) == 4);
        REQUIRE(link(work("file").c_str(), work("kept").c_str()) == 0 && unlink(work("file").c_str()) == 0);
      },
      [&](pid_t pid) {
        inode = status_of(work("kept")).st_ino;
        EXPECT_EQ(status_of(fd_path(pid, 3)).st_ino, inode);
        EXPECT_EQ(status_of(fd_path(pid, 4)).st_ino, inode);
        // "kept", and what the capture after the restore has made.
        EXPECT_EQ(status_of(fd_path(pid, 3)).st_nlink, 2u);
        EXPECT_EQ(*kernel::read_link(fd_path(pid, 3)), work("file") + " (deleted)");
      });
  EXPECT_NE(inode, 0u);
}

TEST_F(RegularFiles, LinkRemapNeedsItsOptionAndIsRolledBack) {
  const auto body = [&] {
    REQUIRE(open(work("file").c_str(), O_CREAT | O_RDWR, 0600) == 3);
    REQUIRE(mkdir(work("elsewhere").c_str(), 0700) == 0);
    REQUIRE(link(work("file").c_str(), work("elsewhere/kept").c_str()) == 0 && unlink(work("file").c_str()) == 0);
  };
  Holder holder(body);
  EXPECT_THAT(refusals(*capture(holder.pid())), Contains(HasSubstr("pass --link-remap")));
  policy.link_remap = true;
  const auto captured = capture(holder.pid());
  EXPECT_THAT(refusals(*captured), IsEmpty());
  EXPECT_EQ(files_in_work(), 2u);
  captured->roll_back();
  EXPECT_EQ(files_in_work(), 1u);
}

TEST_F(RegularFiles, ChangedFilesAreRefused) {
  const auto path = make("file", "0123456789");
  Holder holder([&] { REQUIRE(open(path.c_str(), O_RDONLY) == 3); });
  for (const auto* validation : {"filesize", "checksum"}) {
    policy.file_validation = validation;
    const auto decoded = through_images(capture(holder.pid())->application);
    ASSERT_TRUE(decoded) << decoded.error().message();
    EXPECT_THAT(validated(*decoded), IsEmpty());
    make("file", "012345678X");
    EXPECT_EQ(validated(*decoded).size(), std::string_view(validation) == "checksum" ? 1u : 0u);
    make("file", "shorter");
    ASSERT_EQ(validated(*decoded).size(), 1u);
    EXPECT_THAT(validated(*decoded)[0].text(), HasSubstr("its size is 7, it was 10"));
    make("file", "0123456789");
  }
  const auto decoded = through_images(capture(holder.pid())->application);
  fs::remove(path);
  ASSERT_EQ(validated(*decoded).size(), 1u);
  EXPECT_THAT(validated(*decoded)[0].text(), HasSubstr("cannot be found"));
}

TEST_F(RegularFiles, ChangedProgramsAreRefusedByTheirBuildId) {
  const auto own = *kernel::read_link("/proc/self/exe");
  fs::copy_file(own, work("program"));
  Holder holder([&] { REQUIRE(open(work("program").c_str(), O_RDONLY) == 3); });
  const auto decoded = through_images(capture(holder.pid())->application);
  ASSERT_TRUE(decoded) << decoded.error().message();
  const auto id = read_build_id(work("program"));
  if (id.empty()) GTEST_SKIP() << "programs are built without build ids here";
  EXPECT_THAT(validated(*decoded), IsEmpty());
  auto bytes = content_of(work("program"));
  std::string raw(reinterpret_cast<const char*>(id.data()), id.size() * sizeof(uint32_t));
  const size_t at = bytes.find(raw);
  ASSERT_NE(at, std::string::npos);
  bytes[at] = static_cast<char>(bytes[at] + 1);
  make("program", bytes);
  ASSERT_EQ(validated(*decoded).size(), 1u);
  EXPECT_THAT(validated(*decoded)[0].text(), HasSubstr("it has another build id"));
}

TEST_F(RegularFiles, ReplacedFilesAreNoted) {
  const auto path = make("file", "old");
  Holder holder([&] { REQUIRE(open(path.c_str(), O_RDONLY) == 3); });
  make("other", "new");
  fs::rename(work("other"), path);
  const auto captured = capture(holder.pid());
  EXPECT_THAT(refusals(*captured), IsEmpty()) << "the old file has no name any more: a ghost";
  EXPECT_EQ(captured->application.objects.size(), 1u);
}

TEST(FileIdentity, ChecksumIsCrc32c) {
  const std::string path = "/tmp/stasis-crc-" + std::to_string(getpid());
  std::ofstream(path) << "123456789";
  EXPECT_EQ(read_checksum(path), 0xe3069283u);  // the check value of the algorithm
  fs::remove(path);
  EXPECT_EQ(read_checksum(path), std::nullopt);
}

TEST_F(RegularFiles, HostileGhostsAreRejected) {
  const auto images = image::Directory::open((directory_ / "images").string());
  const auto with = [&](const std::function<void(ghost_file_entry&, std::vector<ghost_chunk_entry>&)>& change) {
    ghost_file_entry entry;
    entry.set_uid(0), entry.set_gid(0), entry.set_mode(S_IFREG | 0600), entry.set_chunks(true), entry.set_size(100);
    std::vector<ghost_chunk_entry> chunks(1);
    chunks[0].set_len(10), chunks[0].set_off(0);
    change(entry, chunks);
    auto writer = images->create("ghost-file-1.img");
    EXPECT_TRUE(writer->append(entry));
    for (const auto& chunk : chunks) {
      EXPECT_TRUE(writer->append(chunk));
      EXPECT_TRUE(writer->append_raw(Bytes(10)));
    }
    EXPECT_TRUE(writer->finish());
    return decode_ghost(*images, 1);
  };
  EXPECT_TRUE(with([](auto&, auto&) {}));
  EXPECT_FALSE(with([](auto&, auto& chunks) { chunks[0].set_off(95); }));
  EXPECT_FALSE(with([](auto&, auto& chunks) { chunks[0].set_len(1ull << 40); }));
  EXPECT_FALSE(with([](auto&, auto& chunks) { chunks[0].set_off(~0ull); }));
  EXPECT_FALSE(with([](auto&, auto& chunks) { chunks.push_back(chunks[0]); }));
  EXPECT_FALSE(with([](auto& entry, auto&) { entry.set_size(~0ull); }));
  EXPECT_FALSE(with([](auto& entry, auto&) { entry.set_mode(S_IFBLK); }));
  EXPECT_FALSE(with([](auto& entry, auto& chunks) { entry.set_size(1ull << 62), chunks[0].set_len(1ull << 60); }));
}

}  // namespace
}  // namespace stasis::resource
