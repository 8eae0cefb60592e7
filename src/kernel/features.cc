#include "kernel/features.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/kcmp.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/unique_fd.h"
#include "kernel/map_files.h"
#include "kernel/mapping_flags.h"
#include "kernel/missing_pages.h"
#include "kernel/object_probes.h"
#include "kernel/proc.h"
#include "kernel/process.h"
#include "kernel/thread_objects.h"
#include "kernel/userfaultfd.h"

namespace stasis::kernel {
namespace {

std::string failed(const char* call) { return std::string(call) + ": " + std::strerror(errno); }

/// Ends and reaps a child of ours, whatever happens in between.
class ProbeChild {
 public:
  ProbeChild() : pid_(fork()) {
    if (pid_ == 0) {
      pause();
      _exit(0);
    }
  }
  ~ProbeChild() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, __WALL);
    }
  }
  ProbeChild(const ProbeChild&) = delete;
  ProbeChild& operator=(const ProbeChild&) = delete;
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
};

std::string probe_seize() {
  const ProbeChild child;
  if (ptrace(PTRACE_SEIZE, child.pid(), nullptr, nullptr) != 0) return failed("PTRACE_SEIZE");
  if (ptrace(PTRACE_INTERRUPT, child.pid(), nullptr, nullptr) != 0) return failed("PTRACE_INTERRUPT");
  return {};
}

std::string probe_set_tid() {
  // A pid that is free now: that of a child just reaped. Taken meanwhile by somebody else, it answers EEXIST,
  // which shows just as well that set_tid was understood and allowed.
  pid_t wanted = fork();
  if (wanted == 0) _exit(0);
  waitpid(wanted, nullptr, 0);
  clone_args arguments{};
  arguments.exit_signal = SIGCHLD;
  arguments.set_tid = reinterpret_cast<uint64_t>(&wanted);
  arguments.set_tid_size = 1;
  const long child = syscall(SYS_clone3, &arguments, sizeof arguments);
  if (child == 0) _exit(0);
  if (child < 0) return errno == EEXIST ? std::string() : failed("clone3(set_tid)");
  waitpid(static_cast<pid_t>(child), nullptr, 0);
  return {};
}

std::string probe_pidfd_getfd() {
  const UniqueFd self(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)));
  if (!self.valid()) return failed("pidfd_open");
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return failed("pipe2");
  const UniqueFd read_end(ends[0]), write_end(ends[1]);
  const UniqueFd copy(static_cast<int>(syscall(SYS_pidfd_getfd, self.get(), read_end.get(), 0)));
  return copy.valid() ? std::string() : failed("pidfd_getfd");
}

std::string probe_kcmp() {
  return syscall(SYS_kcmp, getpid(), getpid(), KCMP_VM, 0, 0) == 0 ? std::string() : failed("kcmp");
}

std::string probe_map_vdso() {
  // ARCH_MAP_VDSO_64 refuses address ranges in use with EEXIST or EINVAL but only a kernel with
  // CONFIG_CHECKPOINT_RESTORE knows the number at all; asked in a child, because success maps a second vDSO.
  constexpr int arch_map_vdso_64 = 0x2003;
  const pid_t child = fork();
  if (child == 0) {
    const long result = syscall(SYS_arch_prctl, arch_map_vdso_64, 0x10000000);
    _exit(result >= 0 || errno == EEXIST ? 0 : errno);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  errno = WEXITSTATUS(status);
  return failed("arch_prctl(ARCH_MAP_VDSO_64)");
}

std::string probe_mm_map() {
  unsigned size = 0;
  if (prctl(PR_SET_MM, PR_SET_MM_MAP_SIZE, &size, 0, 0) != 0) return failed("prctl(PR_SET_MM_MAP_SIZE)");
  return {};
}

std::string probe_timer_ids() {
  constexpr int restore_ids = 77;                    // PR_TIMER_CREATE_RESTORE_IDS, Linux 6.15
  const int state = prctl(restore_ids, 2, 0, 0, 0);  // PR_TIMER_CREATE_RESTORE_IDS_GET
  return state >= 0 ? std::string() : failed("prctl(PR_TIMER_CREATE_RESTORE_IDS)");
}

std::string pagemap_scan_for(uint64_t categories) {
  struct Arguments {  // struct pm_scan_arg, include/uapi/linux/fs.h
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
  };
  Arguments arguments{};
  arguments.size = sizeof arguments;
  arguments.return_mask = categories;
  const UniqueFd pagemap(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!pagemap.valid()) return failed("open /proc/self/pagemap");
  if (ioctl(pagemap.get(), _IOWR('f', 16, Arguments), &arguments) < 0) return failed("PAGEMAP_SCAN");
  return {};
}

std::string probe_pagemap_scan() { return pagemap_scan_for(0); }

std::string probe_guard_pages() { return pagemap_scan_for(page_is_guard); }

std::string probe_ns_pid() {
  const auto status = read_status(getpid());
  if (status && !status->ns_pid.empty()) return {};
  return "/proc/self/status has no line NSpid (CONFIG_PID_NS)";
}

std::string probe_seccomp_filters() {
  // Of a task without filters it answers EINVAL where it is known, EIO where it is not, EACCES without CAP_SYS_ADMIN.
  const ProbeChild child;
  if (ptrace(PTRACE_SEIZE, child.pid(), nullptr, nullptr) != 0) return failed("PTRACE_SEIZE");
  if (ptrace(PTRACE_INTERRUPT, child.pid(), nullptr, nullptr) != 0) return failed("PTRACE_INTERRUPT");
  waitpid(child.pid(), nullptr, __WALL);
  constexpr auto get_filter = static_cast<__ptrace_request>(0x420c);
  if (ptrace(get_filter, child.pid(), nullptr, nullptr) >= 0 || errno == EINVAL || errno == ENOENT) return {};
  return failed("PTRACE_SECCOMP_GET_FILTER");
}

std::string probe_userfaultfd() {
  const UniqueFd made(static_cast<int>(syscall(SYS_userfaultfd, userfaultfd_flags)));
  return made.valid() ? std::string() : failed("userfaultfd");
}

std::string probe_missing_pages() {
  const auto possible = MissingPages::probe();
  return possible ? std::string() : possible.error().message();
}

std::string probe_mapping_flags() {
  const auto flags = MappingFlags::open();
  return flags ? std::string() : flags.error().message();
}

std::string probe_thread_objects() {
  const auto threads = ThreadIterator::open();
  return threads ? std::string() : threads.error().message();
}

/// As it will be used: a page is protected, found unwritten, written and found again.
std::string probe_tracking() {
  const Userfaultfd tracker(UniqueFd(static_cast<int>(syscall(SYS_userfaultfd, userfaultfd_flags))));
  if (tracker.fd() < 0) return failed("userfaultfd");
  if (const auto begun = tracker.begin_tracking(); !begun) return begun.error().message();
  const UniqueFd pagemap(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!pagemap.valid()) return failed("open /proc/self/pagemap");
  constexpr size_t size = 4096;
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return failed("mmap");
  auto* page = static_cast<volatile char*>(memory);
  const AddressRange range{reinterpret_cast<uint64_t>(memory), reinterpret_cast<uint64_t>(memory) + size};
  page[0] = 1;
  const auto is_written = [&](bool wanted) {
    const auto found = scan_pages(pagemap.get(), range, page_is_written, 0, 0, page_is_written);
    return found && found->empty() != wanted;
  };
  const bool protects = tracker.register_range(range) &&
                        scan_and_protect(pagemap.get(), range, page_is_written, 0, 0, page_is_written).has_value() &&
                        is_written(false);
  page[0] = 2;
  const bool tells = protects && is_written(true);
  munmap(memory, size);
  return tells ? std::string() : "writes to protected pages are not told (PAGEMAP_SCAN)";
}

std::string probe_map_files() {
  const Status followed = follow_map_files();
  return followed ? std::string() : followed.error().message();
}

std::string probe_seccomp_suspend() {
  const ProbeChild child;
  if (ptrace(PTRACE_SEIZE, child.pid(), nullptr, PTRACE_O_SUSPEND_SECCOMP) == 0) return {};
  return failed("PTRACE_O_SUSPEND_SECCOMP");
}

std::string probe_rseq() {
  // PTRACE_GET_RSEQ_CONFIGURATION on a running task answers ESRCH where it is known, EIO where it is not.
  const ProbeChild child;
  ptrace(PTRACE_SEIZE, child.pid(), nullptr, nullptr);
  char configuration[24];
  const long result = ptrace(static_cast<__ptrace_request>(0x420f), child.pid(), sizeof configuration, configuration);
  if (result >= 0 || errno == ESRCH) return {};
  return failed("PTRACE_GET_RSEQ_CONFIGURATION");
}

std::string probe_capability(int number, const char* name) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2]{};
  if (syscall(SYS_capget, &header, data) != 0) return failed("capget");
  const bool held = (data[number / 32].effective >> (number % 32)) & 1;
  return held ? std::string() : std::string(name) + " is not held";
}

}  // namespace

const std::vector<Feature>& features() {
  static const std::vector<Feature> all = {
      {"ptrace SEIZE and INTERRUPT", "", true, "stopping tasks without signals", "nothing can be dumped", probe_seize},
      {"clone3 with set_tid", "clone3_set_tid", true, "pids as they were", "nothing can be restored", probe_set_tid},
      {"pidfd_getfd", "pidfd_getfd", true, "descriptors, without messages to the task",
       "descriptors cannot be looked into or shared", probe_pidfd_getfd},
      {"kcmp", "", true, "finding out what tasks share", "sharing cannot be saved", probe_kcmp},
      {"arch_prctl ARCH_MAP_VDSO_64", "can_map_vdso", true, "the vDSO at its address",
       "programs that call the vDSO cannot be restored", probe_map_vdso},
      {"prctl PR_SET_MM_MAP", "", true, "heap, arguments and environment areas", "brk and /proc/PID/cmdline are lost",
       probe_mm_map},
      {"/proc/PID/map_files", "", true, "mapped files as they are", "nothing can be dumped", probe_map_files},
      {"PAGEMAP_SCAN", "pagemap_scan", false, "finding pages to store in milliseconds",
       "/proc/PID/pagemap is read instead, slower", probe_pagemap_scan},
      {"PR_TIMER_CREATE_RESTORE_IDS", "timer_cr_ids", false, "POSIX timer ids as they were, directly",
       "timers are created and deleted until the id comes up", probe_timer_ids},
      {"NSpid in /proc/PID/status", "ns_pid", true, "pids inside of pid namespaces", "nothing can be dumped",
       probe_ns_pid},
      {"PAGE_IS_GUARD", "pagemap_scan_guard_pages", false, "guard regions (MADV_GUARD_INSTALL)", "they are not seen",
       probe_guard_pages},
      {"PTRACE_SECCOMP_GET_FILTER", "seccomp_filters", false, "seccomp filters",
       "tasks with seccomp filters cannot be dumped", probe_seccomp_filters},
      {"PTRACE_O_SUSPEND_SECCOMP", "seccomp_suspend", false, "tasks under seccomp",
       "tasks under seccomp cannot be dumped", probe_seccomp_suspend},
      {"PTRACE_GET_RSEQ_CONFIGURATION", "get_rseq_conf", false, "restartable sequences", "rseq registrations are lost",
       probe_rseq},
      {"userfaultfd WP_ASYNC", "mem_dirty_track", false, "pre-dump, increments, the dirtying curve",
       "every dump is a full dump", probe_tracking},
      {"userfaultfd", "uffd", false, "live snapshots, lazy-pages", "memory is written and restored while nobody runs",
       probe_userfaultfd},
      {"userfaultfd events", "uffd-noncoop", false, "lazy-pages", "memory is restored before anybody runs",
       probe_missing_pages},
      {"mnt_id in /proc/PID/fdinfo", "mnt_id", true, "of which mount an open file is", "nothing can be dumped",
       probe_mount_ids},
      {"locks in /proc/PID/fdinfo", "fdinfo_lock", false, "--file-locks", "locks of files are not seen",
       probe_listed_locks},
      {"timerfds in /proc/PID/fdinfo", "timerfd", false, "timerfds", "they cannot be saved", probe_timerfd},
      {"kcmp KCMP_EPOLL_TFD", "kcmp_epoll", false, "targets of epoll that are closed or open elsewhere",
       "such epolls are refused", probe_epoll_targets},
      {"rings of io_setup that move", "aio_remap", false, "contexts of asynchronous I/O", "they cannot be restored",
       probe_aio_remap},
      {"memfd_create MFD_HUGETLB", "memfd_hugetlb", false, "memfds of huge pages", "they cannot be restored",
       probe_huge_memfd},
      {"SIOCUNIXFILE", "sk_unix_file", false, "sockets whose file has moved or is unlinked", "they are refused",
       probe_socket_files},
      {"sock_diag of raw sockets", "net_diag_raw", false, "how raw sockets are shut down",
       "they are restored as if they were not", probe_raw_diag},
      {"TCP_REPAIR_WINDOW", "tcp_half_closed", false, "TCP connections (--tcp-established)", "they cannot be saved",
       probe_tcp_window},
      {"SO_BUF_LOCK", "sockopt_buf_lock", false, "sizes of buffers that the program has chosen",
       "the kernel may change them again", probe_buffer_locks},
      {"IPV6_FREEBIND", "ipv6_freebind", false, "sockets with addresses that no device has",
       "those of IPv6 cannot be restored", probe_freebind6},
      {"nf_tables", "network_lock_nftables", false, "keeping TCP connections from dump to restore",
       "--network-lock iptables is needed", probe_nf_tables},
      {"iptables-restore", "has_ipt_legacy", false, "--network-lock iptables", "it is refused", probe_iptables_restore},
      {"BPF iterator of mappings", "", false, "short pauses of trees with much memory",
       "they stand still for 20 ms more for each GiB", probe_mapping_flags},
      {"BPF iterator of threads", "", false, "quick dumps of processes with many threads",
       "each thread is looked at by itself: 10 us more for each", probe_thread_objects},
      {"CAP_CHECKPOINT_RESTORE", "", false, "set_tid, map_files, PR_SET_MM_MAP without root", "CAP_SYS_ADMIN is needed",
       [] { return probe_capability(40, "CAP_CHECKPOINT_RESTORE"); }},
      {"CAP_SYS_ADMIN", "", false, "seccomp filters, page frame numbers",
       "copy-on-write sharing and seccomp cannot be saved",
       [] { return probe_capability(CAP_SYS_ADMIN, "CAP_SYS_ADMIN"); }},
      {"CAP_SYS_PTRACE", "", false, "tasks of other users", "only our own user's tasks can be dumped",
       [] { return probe_capability(CAP_SYS_PTRACE, "CAP_SYS_PTRACE"); }},
      {"CAP_SYS_RESOURCE", "", false, "raising hard limits, lowering oom_score_adj",
       "tasks whose hard limits exceed ours, or whose oom_score_adj is lower, are refused at restore",
       [] { return probe_capability(CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE"); }},
  };
  return all;
}

}  // namespace stasis::kernel
