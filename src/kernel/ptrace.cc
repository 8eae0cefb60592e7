#include "kernel/ptrace.h"

#include <elf.h>
#include <errno.h>
#include <linux/ptrace.h>
#include <signal.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <fmt/format.h>

namespace stasis::kernel {
namespace {

/// glibc's ptrace() is variadic and typed by an enum; this is the system call as it is.
long raw_ptrace(unsigned request, pid_t tid, uint64_t address, uint64_t data) {
  return ptrace(static_cast<__ptrace_request>(request), tid, address, data);
}
uint64_t pointer(const void* address) { return reinterpret_cast<uint64_t>(address); }

/// ESRCH: the tracee has died (or has been killed and is on its way out, or is not stopped: the callers' bug).
Error ptrace_error(const char* operation, pid_t tid) {
  const int error = errno;
  if (error == ESRCH) return Error::gone(operation, fmt::format("task {}", tid));
  return Error::system(operation, error, fmt::format("task {}", tid));
}

Status plain(const char* operation, unsigned request, pid_t tid, uint64_t address, uint64_t data) {
  if (raw_ptrace(request, tid, address, data) < 0) return fail(ptrace_error(operation, tid));
  return {};
}

}  // namespace

bool WaitStatus::exited() const { return WIFEXITED(raw_); }
bool WaitStatus::killed() const { return WIFSIGNALED(raw_); }
bool WaitStatus::stopped() const { return WIFSTOPPED(raw_); }
int WaitStatus::stop_signal() const { return stopped() ? WSTOPSIG(raw_) & 0x7f : 0; }
int WaitStatus::ptrace_event() const { return stopped() ? raw_ >> 16 : 0; }
bool WaitStatus::is_syscall_stop() const { return stopped() && WSTOPSIG(raw_) == (SIGTRAP | 0x80); }
bool WaitStatus::is_group_stop() const {
  const int signal = stop_signal();
  return ptrace_event() == PTRACE_EVENT_STOP &&
         (signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU);
}

std::string WaitStatus::describe() const {
  if (exited()) return fmt::format("exited with status {}", WEXITSTATUS(raw_));
  if (killed()) return fmt::format("killed by signal {} ({})", WTERMSIG(raw_), strsignal(WTERMSIG(raw_)));
  if (!stopped()) return fmt::format("wait status {:#x}", raw_);
  if (is_syscall_stop()) return "stopped at a system call";
  if (is_group_stop()) return fmt::format("stopped by signal {} ({})", stop_signal(), strsignal(stop_signal()));
  if (ptrace_event() != 0) return fmt::format("stopped by ptrace event {}", ptrace_event());
  return fmt::format("stopped at delivery of signal {} ({})", stop_signal(), strsignal(stop_signal()));
}

Status ptrace_seize(pid_t tid, uint64_t options) { return plain("PTRACE_SEIZE", PTRACE_SEIZE, tid, 0, options); }
Status ptrace_interrupt(pid_t tid) { return plain("PTRACE_INTERRUPT", PTRACE_INTERRUPT, tid, 0, 0); }
Status ptrace_detach(pid_t tid, int signal) {
  return plain("PTRACE_DETACH", PTRACE_DETACH, tid, 0, static_cast<uint64_t>(signal));
}
Status ptrace_continue(pid_t tid, int signal) {
  return plain("PTRACE_CONT", PTRACE_CONT, tid, 0, static_cast<uint64_t>(signal));
}
Status ptrace_to_syscall(pid_t tid, int signal) {
  return plain("PTRACE_SYSCALL", PTRACE_SYSCALL, tid, 0, static_cast<uint64_t>(signal));
}
Status ptrace_listen(pid_t tid) { return plain("PTRACE_LISTEN", PTRACE_LISTEN, tid, 0, 0); }
Result<uint64_t> ptrace_get_event_message(pid_t tid) {
  unsigned long message = 0;
  if (raw_ptrace(PTRACE_GETEVENTMSG, tid, 0, pointer(&message)) < 0) {
    return fail(ptrace_error("PTRACE_GETEVENTMSG", tid));
  }
  return message;
}
Status ptrace_set_options(pid_t tid, uint64_t options) {
  return plain("PTRACE_SETOPTIONS", PTRACE_SETOPTIONS, tid, 0, options);
}

Result<Bytes> ptrace_get_regset(pid_t tid, int type) {
  // AMX tiles take the standard XSAVE format to 11 KiB; the kernel writes what there is and says how much.
  uint8_t buffer[16 << 10];
  iovec area{buffer, sizeof buffer};
  if (raw_ptrace(PTRACE_GETREGSET, tid, static_cast<uint64_t>(type), pointer(&area)) < 0) {
    return fail(ptrace_error("PTRACE_GETREGSET", tid));
  }
  return Bytes(buffer, buffer + area.iov_len);
}

Status ptrace_set_regset(pid_t tid, int type, ByteView registers) {
  iovec area{const_cast<uint8_t*>(registers.data()), registers.size()};
  return plain("PTRACE_SETREGSET", PTRACE_SETREGSET, tid, static_cast<uint64_t>(type), pointer(&area));
}

Result<uint64_t> ptrace_get_sigmask(pid_t tid) {
  uint64_t mask = 0;
  if (raw_ptrace(PTRACE_GETSIGMASK, tid, sizeof mask, pointer(&mask)) < 0) {
    return fail(ptrace_error("PTRACE_GETSIGMASK", tid));
  }
  return mask;
}

Status ptrace_set_sigmask(pid_t tid, uint64_t mask) {
  return plain("PTRACE_SETSIGMASK", PTRACE_SETSIGMASK, tid, sizeof mask, pointer(&mask));
}

Result<std::vector<Bytes>> ptrace_peek_siginfo(pid_t tid, bool shared) {
  constexpr int batch = 32;
  std::vector<Bytes> queue;
  siginfo_t infos[batch];
  for (;;) {
    ptrace_peeksiginfo_args arguments{};
    arguments.off = queue.size();
    arguments.flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0;
    arguments.nr = batch;
    const long got = raw_ptrace(PTRACE_PEEKSIGINFO, tid, pointer(&arguments), pointer(infos));
    if (got < 0) return fail(ptrace_error("PTRACE_PEEKSIGINFO", tid));
    for (long index = 0; index < got; ++index) queue.push_back(bytes_of(infos[index]));
    if (got < batch) return queue;
  }
}

Result<Bytes> ptrace_get_siginfo(pid_t tid) {
  siginfo_t info{};
  if (raw_ptrace(PTRACE_GETSIGINFO, tid, 0, pointer(&info)) < 0) return fail(ptrace_error("PTRACE_GETSIGINFO", tid));
  return bytes_of(info);
}

Result<std::optional<SeccompFilterView>> ptrace_get_seccomp_filter(pid_t tid, unsigned index) {
  // include/uapi/linux/ptrace.h: struct seccomp_metadata
  struct {
    uint64_t filter_off, flags;
  } metadata{index, 0};
  constexpr size_t instruction_size = 8;  // struct sock_filter
  const long count = raw_ptrace(PTRACE_SECCOMP_GET_FILTER, tid, index, 0);
  if (count < 0 && (errno == ENOENT || errno == EINVAL)) return std::nullopt;  // past the last; no filter mode at all
  if (count < 0) return fail(ptrace_error("PTRACE_SECCOMP_GET_FILTER", tid));
  SeccompFilterView view;
  view.program.resize(static_cast<size_t>(count) * instruction_size);
  if (raw_ptrace(PTRACE_SECCOMP_GET_FILTER, tid, index, pointer(view.program.data())) != count) {
    return fail(ptrace_error("PTRACE_SECCOMP_GET_FILTER", tid));
  }
  if (raw_ptrace(PTRACE_SECCOMP_GET_METADATA, tid, sizeof metadata, pointer(&metadata)) < 0) {
    return fail(ptrace_error("PTRACE_SECCOMP_GET_METADATA", tid));
  }
  view.flags = metadata.flags;
  return view;
}

Result<RseqConfiguration> ptrace_get_rseq(pid_t tid) {
  struct {
    uint64_t address;
    uint32_t size, signature, flags, padding;
  } raw{};
  if (raw_ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tid, sizeof raw, pointer(&raw)) < 0) {
    return fail(ptrace_error("PTRACE_GET_RSEQ_CONFIGURATION", tid));
  }
  return RseqConfiguration{raw.address, raw.size, raw.signature, raw.flags};
}

Result<Waited> wait_for(pid_t tid, int options) {
  for (;;) {
    int status = 0;
    const pid_t got = waitpid(tid, &status, options | __WALL);
    if (got >= 0) return Waited{got, WaitStatus(status)};
    if (errno == ECHILD) return fail(Error::gone("waitpid", fmt::format("task {}", tid)));
    if (errno != EINTR) return fail_errno("waitpid", fmt::format("task {}", tid));
  }
}

}  // namespace stasis::kernel
