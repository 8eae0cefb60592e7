// What kinds of descriptors add to /proc/PID/fdinfo/FD (Documentation/filesystems/proc.rst, section 3.8). All are pure
// parsers of the whole text.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/types.h"

namespace stasis::kernel {

/// fs/eventfd.c
struct EventfdInfo {
  uint64_t counter = 0;
  std::optional<bool> semaphore;  ///< Linux before 6.4 does not tell
};
Result<EventfdInfo> parse_eventfd(std::string_view text);

/// fs/timerfd.c
struct TimerfdInfo {
  int32_t clock = 0;
  uint64_t ticks = 0;          ///< expirations that nobody has read
  uint32_t settime_flags = 0;  ///< TFD_TIMER_*
  uint64_t remaining_ns = 0, interval_ns = 0;
};
Result<TimerfdInfo> parse_timerfd(std::string_view text);

/// fs/signalfd.c: bit n is signal n + 1.
Result<uint64_t> parse_signalfd(std::string_view text);

/// fs/eventpoll.c: one thing that an epoll waits for, in the order of the kernel's list.
struct EpollTarget {
  int fd = -1;  ///< the number that it was added under; what that number is now may be something else
  uint32_t events = 0;
  uint64_t data = 0;
  uint64_t position = 0, inode = 0;
  uint32_t device = 0;  ///< the kernel's dev_t
};
Result<std::vector<EpollTarget>> parse_epoll(std::string_view text);

/// fs/notify/fdinfo.c: one watch or mark.
struct FileHandle {
  uint32_t type = 0;
  Bytes bytes;
};
struct InotifyWatch {
  int descriptor = 0;
  uint64_t inode = 0;
  uint32_t device = 0, mask = 0, ignored_mask = 0;
  FileHandle handle;
};
Result<std::vector<InotifyWatch>> parse_inotify(std::string_view text);

struct FanotifyMark {
  enum class Kind : uint8_t { inode, mount, filesystem };
  Kind kind = Kind::inode;
  uint64_t inode = 0;
  uint32_t mount_id = 0, device = 0, flags = 0, mask = 0, ignored_mask = 0;
  FileHandle handle;
};
struct FanotifyInfo {
  uint32_t flags = 0, event_flags = 0;
  std::vector<FanotifyMark> marks;
};
Result<FanotifyInfo> parse_fanotify(std::string_view text);

/// fs/pidfs.c: as seen from the pid namespace of the procfs that was read.
struct PidfdInfo {
  pid_t pid = 0;  ///< -1: it has been reaped; 0: it is not in this namespace
};
Result<PidfdInfo> parse_pidfd(std::string_view text);

/// kernel/bpf/syscall.c, bpf_map_show_fdinfo
struct BpfMapInfo {
  uint32_t type = 0, key_size = 0, value_size = 0, max_entries = 0, flags = 0, id = 0;
  uint64_t memory = 0;  ///< what it takes, in bytes
  bool frozen = false;
};
Result<BpfMapInfo> parse_bpf_map(std::string_view text);
/// fs/locks.c, lock_get_status: one lock or lease, as fdinfo shows those that belong to the descriptor's open file or,
/// taken through it, to the table of the process. /proc/locks has the same lines for all files.
struct LockInfo {
  std::string_view kind;  ///< "POSIX", "FLOCK", "OFDLCK", "LEASE" … of the text that was parsed
  std::string_view type;  ///< "READ", "WRITE" or "UNLCK"
  bool breaking = false;  ///< of a lease: `type` is what it is to become
  pid_t pid = 0;          ///< who took it; -1: an open file; 0: a process that the reader cannot see
  uint32_t device_major = 0, device_minor = 0;
  uint64_t inode = 0;
  uint64_t start = 0, length = 0;  ///< length 0: up to the end of the file
};
Result<std::vector<LockInfo>> parse_locks(std::string_view fdinfo);
/// What /proc/locks says. Those who wait for a lock are left out.
Result<std::vector<LockInfo>> parse_all_locks(std::string_view proc_locks);

}  // namespace stasis::kernel
