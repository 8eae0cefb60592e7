// Memory files: content, size, seals, modes and sharing, through a capture, images and a new process.
#include <sys/mman.h>
#include <sys/stat.h>

#include "kernel/process.h"
#include "file_cycle.h"

namespace stasis::resource {
namespace {

class Memfds : public FileCycle {};

std::string bytes_at(pid_t pid, int fd, off_t offset, size_t length) {
  const UniqueFd file(open(fd_path(pid, fd).c_str(), O_RDONLY));
  std::string bytes(length, 0);
  const ssize_t count = pread(file.get(), bytes.data(), length, offset);
  bytes.resize(count < 0 ? 0 : static_cast<size_t>(count));
  return bytes;
}

TEST_F(Memfds, ContentSizeModeAndSharing) {
  cycle(
      [] {
        REQUIRE(memfd_create("a name", MFD_CLOEXEC) == 3);
        REQUIRE(write(3, "beginning", 9) == 9 && pwrite(3, "end", 3, 1'000'000) == 3);
        REQUIRE(fchmod(3, 0640) == 0 && fchown(3, 5, 6) == 0);
        REQUIRE(open("/proc/self/fd/3", O_RDONLY) == 4 && lseek(4, 5, SEEK_SET) == 5 && dup2(3, 10) == 10);
      },
      [](pid_t pid) {
        struct stat first{}, second{};
        ASSERT_EQ(stat(fd_path(pid, 3).c_str(), &first), 0);
        ASSERT_EQ(stat(fd_path(pid, 4).c_str(), &second), 0);
        EXPECT_EQ(first.st_ino, second.st_ino);
        EXPECT_EQ(first.st_size, 1'000'003);
        EXPECT_EQ(first.st_mode & 07777, 0640u);
        EXPECT_EQ(first.st_uid, 5u);
        EXPECT_EQ(first.st_gid, 6u);
        EXPECT_LT(first.st_blocks * 512, 100'000) << "holes are holes";
        EXPECT_EQ(*kernel::read_link(fd_path(pid, 3)), "/memfd:a name (deleted)");
        EXPECT_EQ(bytes_at(pid, 4, 0, 10), std::string("beginning\0", 10));
        EXPECT_EQ(bytes_at(pid, 4, 999'999, 10), std::string("\0end", 4));
      });
}

TEST_F(Memfds, Seals) {
  cycle(
      [] {
        REQUIRE(memfd_create("sealed", MFD_ALLOW_SEALING) == 3 && write(3, "fixed", 5) == 5);
        REQUIRE(fcntl(3, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) == 0);
        REQUIRE(memfd_create("sealable", MFD_ALLOW_SEALING) == 4);
        REQUIRE(memfd_create("unsealable", 0) == 5);
        REQUIRE(memfd_create("no future", MFD_ALLOW_SEALING) == 6 && fcntl(6, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0);
      },
      [](pid_t pid) {
        const auto pidfd = *kernel::pidfd_open(pid);
        const auto seals = [&](int fd) { return fcntl(kernel::pidfd_getfd(pidfd.get(), fd)->get(), F_GET_SEALS); };
        EXPECT_EQ(seals(3), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
        EXPECT_EQ(seals(4), 0);
        EXPECT_EQ(seals(5), F_SEAL_SEAL);
        EXPECT_EQ(seals(6), F_SEAL_FUTURE_WRITE);
      });
}

}  // namespace
}  // namespace stasis::resource
