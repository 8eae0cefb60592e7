// Files of this machine, with and without locks.
#include "resource/locked_files.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <gtest/gtest.h>

#include "base/unique_fd.h"

namespace stasis::resource {
namespace {

struct TemporaryFile {
  TemporaryFile() {
    char name[] = "/tmp/locked-files-XXXXXX";
    fd = UniqueFd(mkostemp(name, O_CLOEXEC));
    unlink(name);
    struct statx about{};
    EXPECT_EQ(statx(fd.get(), "", AT_EMPTY_PATH, STATX_MNT_ID, &about), 0);
    EXPECT_EQ(fstat(fd.get(), &probe.stat), 0);
    probe.mount_id = static_cast<int64_t>(about.stx_mnt_id);
  }
  UniqueFd fd;
  DescriptorProbe probe;
};

constexpr size_t many = 100'000;

TEST(LockedFiles, EveryFileMayBeLockedBeforeItIsKnown) {
  const TemporaryFile file;
  const LockedFiles few(1);
  EXPECT_TRUE(few.may_be_locked(file.probe));
  LockedFiles waited_for(1);
  waited_for.wait();
  EXPECT_TRUE(waited_for.may_be_locked(file.probe));
}

TEST(LockedFiles, WhatIsLockedIsNeverSaidToBeFree) {
  const TemporaryFile whole, range;
  ASSERT_EQ(flock(whole.fd.get(), LOCK_EX), 0);
  struct flock lock{};
  lock.l_type = F_WRLCK, lock.l_whence = SEEK_SET, lock.l_len = 1;
  ASSERT_EQ(fcntl(range.fd.get(), F_OFD_SETLK, &lock), 0);
  LockedFiles files(many);
  files.wait();
  EXPECT_TRUE(files.may_be_locked(whole.probe));
  EXPECT_TRUE(files.may_be_locked(range.probe));
}

TEST(LockedFiles, AFreeFileIsKnownToBeFreeOutsideOfPidNamespaces) {
  struct stat space{};
  ASSERT_EQ(stat("/proc/self/ns/pid", &space), 0);
  const TemporaryFile file;
  LockedFiles files(many);
  files.wait();
  TemporaryFile elsewhere;
  elsewhere.probe.mount_id = -1;
  EXPECT_TRUE(files.may_be_locked(elsewhere.probe)) << "of a mount that stasis does not see";
  constexpr ino_t initial = 0xEFFFFFFC;
  if (space.st_ino != initial) GTEST_SKIP() << "/proc/locks does not show all locks inside of a pid namespace";
  EXPECT_FALSE(files.may_be_locked(file.probe));
}

}  // namespace
}  // namespace stasis::resource
