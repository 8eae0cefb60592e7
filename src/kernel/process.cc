#include "kernel/process.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <fmt/format.h>

namespace stasis::kernel {
namespace {

Error process_error(const char* operation, pid_t pid) {
  const int error = errno;
  if (error == ESRCH) return Error::gone(operation, fmt::format("task {}", pid));
  return Error::system(operation, error, fmt::format("task {}", pid));
}

int kernel_kcmp_type(KcmpType type) {
  switch (type) {
    case KcmpType::file:
      return KCMP_FILE;
    case KcmpType::vm:
      return KCMP_VM;
    case KcmpType::files:
      return KCMP_FILES;
    case KcmpType::fs:
      return KCMP_FS;
    case KcmpType::sighand:
      return KCMP_SIGHAND;
    case KcmpType::io:
      return KCMP_IO;
    case KcmpType::sysvsem:
      return KCMP_SYSVSEM;
  }
  return -1;
}

Result<UniqueFd> open_memory(pid_t pid, int mode) {
  UniqueFd memory(open(fmt::format("/proc/{}/mem", pid).c_str(), mode | O_CLOEXEC));
  if (!memory.valid() && errno == ENOENT) return fail(Error::gone("open /proc/PID/mem", fmt::format("task {}", pid)));
  if (!memory.valid()) return fail(process_error("open /proc/PID/mem", pid));
  return memory;
}

Error memory_error(const char* operation, pid_t pid, uint64_t address, size_t size) {
  return process_error(operation, pid).about(fmt::format("task {}, {} bytes at {:#x}", pid, size, address));
}

}  // namespace

Result<UniqueFd> pidfd_open(pid_t pid) {
  UniqueFd fd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!fd.valid()) return fail(process_error("pidfd_open", pid));
  return fd;
}

Result<UniqueFd> pidfd_open_thread(pid_t tid) {
  constexpr unsigned pidfd_thread = O_EXCL;  // PIDFD_THREAD, linux/pidfd.h
  auto leader = pidfd_open(tid);
  // "No leader" was EINVAL before Linux 6.15 (kernel/fork.c, pidfd_prepare).
  if (leader || (leader.error().errno_value() != EINVAL && leader.error().errno_value() != ENOENT)) return leader;
  UniqueFd fd(static_cast<int>(syscall(SYS_pidfd_open, tid, pidfd_thread)));
  if (fd.valid()) return fd;
  if (errno == EINVAL)
    return fail(Error::unsupported("pidfd_open", "descriptors of a process whose first thread has ended need Linux 6.9",
                                   fmt::format("thread {}", tid)));
  return fail(process_error("pidfd_open", tid));
}

Result<UniqueFd> pidfd_getfd(int pidfd, int fd) {
  UniqueFd copy(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd, fd, 0)));
  if (copy.valid()) return copy;
  if (errno == ESRCH) return fail(Error::gone("pidfd_getfd", fmt::format("descriptor {}", fd)));
  return fail_errno("pidfd_getfd", fmt::format("descriptor {}", fd));
}

Status pidfd_kill(int pidfd, int signal) {
  if (syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0) == 0) return {};
  if (errno == ESRCH) return fail(Error::gone("pidfd_send_signal", fmt::format("signal {}", signal)));
  return fail_errno("pidfd_send_signal", fmt::format("signal {}", signal));
}

namespace {

/// 0 equal, 1 less, 2 greater, 3 not equal but unordered: kernel/kcmp.c, kcmp_ptr() never gives 3.
Result<std::strong_ordering> order_of(long answer, pid_t pid1, pid_t pid2) {
  switch (answer) {
    case 0:
      return std::strong_ordering::equal;
    case 1:
      return std::strong_ordering::less;
    case 2:
      return std::strong_ordering::greater;
    case -1:
      return fail(process_error("kcmp", pid1).about(fmt::format("tasks {} and {}", pid1, pid2)));
    default:
      return fail(Error::unsupported("kcmp", "this kernel does not order objects"));
  }
}

}  // namespace

Result<std::strong_ordering> kcmp(pid_t pid1, pid_t pid2, KcmpType type, int a, int b) {
  return order_of(syscall(SYS_kcmp, pid1, pid2, kernel_kcmp_type(type), static_cast<unsigned long>(a),
                          static_cast<unsigned long>(b)),
                  pid1, pid2);
}

Result<std::strong_ordering> kcmp_epoll(pid_t pid, int fd, pid_t holder, const EpollSlot& slot) {
  const kcmp_epoll_slot wanted{static_cast<uint32_t>(slot.epoll), static_cast<uint32_t>(slot.target), slot.nth};
  return order_of(syscall(SYS_kcmp, pid, holder, KCMP_EPOLL_TFD, static_cast<unsigned long>(fd), &wanted), pid, holder);
}

Status read_memory(pid_t pid, RemoteAddress from, std::span<uint8_t> into) {
  size_t done = 0;
  while (done < into.size()) {
    iovec local{into.data() + done, into.size() - done};
    iovec remote{reinterpret_cast<void*>(from.value + done), local.iov_len};
    const ssize_t got = process_vm_readv(pid, &local, 1, &remote, 1, 0);
    if (got <= 0) break;
    done += static_cast<size_t>(got);
  }
  if (done == into.size()) return {};
  if (errno == ESRCH) return fail(memory_error("process_vm_readv", pid, from.value, into.size()));
  // Pages without PROT_READ refuse the quick way; /proc/PID/mem asks the tracer's rights instead.
  const auto memory = TRY(open_memory(pid, O_RDONLY));
  while (done < into.size()) {
    const ssize_t got =
        pread(memory.get(), into.data() + done, into.size() - done, static_cast<off_t>(from.value + done));
    if (got == 0) return fail(Error::gone("read /proc/PID/mem", fmt::format("task {}", pid)));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail(memory_error("read /proc/PID/mem", pid, from.value, into.size()));
    done += static_cast<size_t>(got);
  }
  return {};
}

Status write_own_memory(pid_t pid, RemoteAddress to, ByteView bytes) {
  const iovec local{const_cast<uint8_t*>(bytes.data()), bytes.size()};
  const iovec remote{reinterpret_cast<void*>(to.value), bytes.size()};
  if (process_vm_writev(pid, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(bytes.size())) return {};
  return write_memory(pid, to, bytes);
}

Status write_memory(pid_t pid, RemoteAddress to, ByteView bytes) {
  const auto memory = TRY(open_memory(pid, O_WRONLY));
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t put =
        pwrite(memory.get(), bytes.data() + done, bytes.size() - done, static_cast<off_t>(to.value + done));
    if (put == 0) return fail(Error::gone("write /proc/PID/mem", fmt::format("task {}", pid)));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return fail(memory_error("write /proc/PID/mem", pid, to.value, bytes.size()));
    done += static_cast<size_t>(put);
  }
  return {};
}

}  // namespace stasis::kernel
