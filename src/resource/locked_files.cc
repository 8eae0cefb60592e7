#include "resource/locked_files.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base/parallel.h"
#include "kernel/fdinfo.h"
#include "kernel/mounts.h"
#include "kernel/proc.h"

namespace stasis::resource {
namespace {

/// Below, fdinfo of all of them has been read before /proc/locks lets itself be opened, and nothing else is left to do
/// meanwhile.
constexpr size_t worth_it = 1500;

/// Inside of a pid namespace /proc/locks leaves out what was locked outside, or by a task that has ended since
/// (fs/locks.c, locks_translate_pid).
bool sees_all_locks() {
  constexpr ino_t initial = 0xEFFFFFFC;  // PROC_PID_INIT_INO (linux/proc_ns.h)
  struct stat space{};
  return stat("/proc/self/ns/pid", &space) == 0 && space.st_ino == initial;
}

}  // namespace

LockedFiles::LockedFiles(size_t descriptors) {
  if (descriptors >= worth_it && sees_all_locks()) reading_ = start_beside([this] { known_ = read(); });
}

void LockedFiles::wait() {
  if (reading_.joinable()) reading_.join();
}

/// The kernel waits for all processors before it shows the locks (a percpu_rw_semaphore taken for writing), which takes
/// milliseconds, in which others can work.
std::optional<LockedFiles::Known> LockedFiles::read() {
  const auto text = kernel::read_file("/proc/locks");
  const auto locks = text ? kernel::parse_all_locks(*text) : fail(text.error());
  const auto mounts = kernel::read_mountinfo();
  if (!locks || !mounts) return std::nullopt;  // then all are asked
  Known known;
  for (const auto& lock : *locks) known.locked.emplace(makedev(lock.device_major, lock.device_minor), lock.inode);
  for (const auto& mount : *mounts) {
    // The inodes of an overlay may have other numbers than those of its layers, which stat(2) tells
    // (fs/overlayfs/inode.c, ovl_map_dev_ino).
    if (mount.type != "overlay") known.devices.emplace(mount.id, makedev(mount.device_major, mount.device_minor));
  }
  return known;
}

bool LockedFiles::may_be_locked(const DescriptorProbe& probe) const {
  if (!known_) return true;
  const auto mount = known_->devices.find(probe.mount_id);
  // In a mount of another namespace, or on a file system with devices of its own making (btrfs): not to be compared.
  if (mount == known_->devices.end() || mount->second != probe.stat.st_dev) return true;
  return known_->locked.contains({probe.stat.st_dev, probe.stat.st_ino});
}

}  // namespace stasis::resource
