// Parsers of /proc. Each has a pure `parse_…` for tests and fuzzing and a reader beside it. `host pid`s throughout.
// Formats: Documentation/filesystems/proc.rst.
#pragma once

#include <sys/types.h>

#include <bitset>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/types.h"

namespace stasis::kernel {

/// Whole text of a proc file ("/proc/<pid>/<name>"); ErrorCode::gone when the task has died.
Result<std::string> read_proc(pid_t pid, std::string_view name);
/// The same of a file that is one record, all of which one read brings (seq_file's single_open: stat, status, limits,
/// fdinfo/N).
Result<std::string> read_record(pid_t pid, std::string_view name);
/// Likewise, named from an open directory such as /proc/PID/fdinfo.
Result<std::string> read_record_at(int directory, const std::string& name);
Result<std::string> read_file(const std::string& path);
/// Target of a link of any length.
Result<std::string> read_link(const std::string& path);
/// The same for links named from an open directory such as /proc/PID/fd.
Result<std::string> read_link_at(int directory, const std::string& name);
/// How many threads there are, dead leader included, without a list: /proc/PID/task has a link for each beside the two
/// of any directory (fs/proc/base.c, proc_task_getattr).
Result<size_t> count_threads(pid_t pid);
Result<std::vector<pid_t>> list_threads(pid_t pid);   ///< /proc/PID/task, leader first
Result<std::vector<pid_t>> list_children(pid_t pid);  ///< of all its threads: /proc/PID/task/*/children
/// The same where the threads are known, and which of them each is the child of.
struct Child {
  pid_t pid = 0, parent_thread = 0;
};
Result<std::vector<Child>> list_children(pid_t pid, std::span<const pid_t> tids);
/// Everything below a process, itself included, parents first.
std::vector<pid_t> list_descendants(pid_t root);
Result<std::vector<int>> list_descriptors(pid_t pid);  ///< ascending

/// /proc/PID/stat
struct StatInfo {
  std::string comm;
  char state = '?';
  pid_t ppid = 0, pgrp = 0, session = 0;
  int tty_nr = 0, tty_pgrp = 0;
  uint64_t flags = 0;
  int64_t nice = 0;
  int num_threads = 0;
  uint64_t start_time = 0;
  uint64_t start_code = 0, end_code = 0, start_stack = 0;
  uint64_t start_data = 0, end_data = 0, start_brk = 0;
  uint64_t arg_start = 0, arg_end = 0, env_start = 0, env_end = 0;
  int exit_code = 0;
  bool is_dead() const { return state == 'Z' || state == 'X'; }
  /// A leader that has ended stays as a zombie until the other threads have (kernel/exit.c, delay_group_leader).
  bool has_left_threads() const { return is_dead() && num_threads > 1; }
};
Result<StatInfo> parse_stat(std::string_view text);
Result<StatInfo> read_stat(pid_t pid);
Result<StatInfo> read_thread_stat(pid_t pid, pid_t tid);

/// /proc/PID/status (also of a thread: /proc/PID/task/TID/status)
struct StatusInfo {
  std::string name;
  uint32_t umask = 022;
  char state = '?';
  pid_t tgid = 0, pid = 0, ppid = 0, tracer = 0;
  std::vector<pid_t> ns_tgid, ns_pid, ns_pgid, ns_sid;  ///< outermost first
  uint32_t uids[4]{}, gids[4]{};                        ///< real, effective, saved, filesystem
  size_t descriptor_table_size = 0;                     ///< no descriptor has this number or a higher one
  std::vector<uint32_t> groups;
  uint64_t sig_pending = 0, shared_pending = 0, blocked = 0, ignored = 0, caught = 0;
  uint64_t cap_inheritable = 0, cap_permitted = 0, cap_effective = 0, cap_bounding = 0, cap_ambient = 0;
  bool no_new_privs = false;
  int seccomp = 0;
  int seccomp_filters = 0;
  uint64_t pinned_kb = 0;  ///< of buffers that are registered (io_uring, RDMA)
  bool thp_enabled = true;
  uint64_t voluntary_switches = 0;  ///< how often it has gone to sleep
  bool shadow_stack = false;        ///< x86_Thread_features: shstk
};
Result<StatusInfo> parse_status(std::string_view text);
Result<StatusInfo> read_status(pid_t pid);
Result<StatusInfo> read_thread_status(pid_t pid, pid_t tid);

/// The two-letter names of a "VmFlags:" line, as a set. Names of other forms (the kernel prints "??" for what it has no
/// name for) are left out.
class VmFlags {
 public:
  void insert(std::string_view name) {
    if (is_name(name)) bits_.set(index(name));
  }
  void insert(const VmFlags& others) { bits_ |= others.bits_; }
  bool contains(std::string_view name) const { return is_name(name) && bits_.test(index(name)); }
  size_t size() const { return bits_.count(); }
  friend bool operator==(const VmFlags&, const VmFlags&) = default;

 private:
  static constexpr size_t letters = 26;
  static bool is_name(std::string_view name) {
    const auto is_letter = [](char c) { return c >= 'a' && c <= 'z'; };
    return name.size() == 2 && is_letter(name[0]) && is_letter(name[1]);
  }
  static size_t index(std::string_view name) {
    return static_cast<size_t>(name[0] - 'a') * letters + static_cast<size_t>(name[1] - 'a');
  }
  std::bitset<letters * letters> bits_;
};

/// One VMA of /proc/PID/smaps (or maps: then vm_flags is empty and has_vm_flags false, and what is counted is 0).
struct MapsEntry {
  AddressRange range;
  uint32_t protection = 0;  ///< PROT_*
  bool shared = false;
  uint64_t offset = 0;
  uint32_t device_major = 0, device_minor = 0;
  uint64_t inode = 0;
  std::string path;  ///< as printed, "\012" unescaped, " (deleted)" kept
  VmFlags vm_flags;
  bool has_vm_flags = false;
  uint64_t kernel_page_size = 4096;
  int protection_key = 0;
  uint64_t rss_bytes = 0, anonymous_bytes = 0, swap_bytes = 0;
};
Result<std::vector<MapsEntry>> parse_maps(std::string_view text);
Result<std::vector<MapsEntry>> read_smaps(pid_t pid);
Result<std::vector<MapsEntry>> read_maps(pid_t pid);

/// /proc/PID/fdinfo/FD
struct FdInfo {
  uint64_t position = 0;
  uint32_t flags = 0;
  int64_t mount_id = -1;
  uint64_t inode = 0;
  std::string text;
};
Result<FdInfo> parse_fdinfo(std::string_view text);
Result<FdInfo> read_fdinfo(pid_t pid, int fd);

/// /proc/PID/limits: index is RLIMIT_*.
struct LimitInfo {
  uint64_t soft = 0, hard = 0;  ///< ~0: unlimited
};
Result<std::vector<LimitInfo>> parse_limits(std::string_view text);
Result<std::vector<LimitInfo>> read_limits(pid_t pid);

/// /proc/PID/timers
struct ProcTimer {
  int32_t id = 0;
  int32_t signal = 0;
  uint64_t value = 0;
  int32_t notification = 0;  ///< SIGEV_*
  pid_t notified = 0;        ///< "signal/tid.4711" / "signal/pid.4711": host ids
  int32_t clock = 0;
};
Result<std::vector<ProcTimer>> parse_timers(std::string_view text);
Result<std::vector<ProcTimer>> read_timers(pid_t pid);

Result<std::vector<uint64_t>> read_auxv(pid_t pid);

}  // namespace stasis::kernel
