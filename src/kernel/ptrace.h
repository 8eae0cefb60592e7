// ptrace(2) by name. Every call says ErrorCode::gone when the tracee has died: an expected outcome.
#pragma once

#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/user.h>

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/types.h"

namespace stasis::kernel {

/// A wait(2) status with its kinds spelled out.
class WaitStatus {
 public:
  explicit WaitStatus(int raw = 0) : raw_(raw) {}
  int raw() const { return raw_; }
  bool exited() const;
  bool killed() const;
  bool stopped() const;
  int stop_signal() const;   ///< without the 0x80 of PTRACE_O_TRACESYSGOOD
  int ptrace_event() const;  ///< PTRACE_EVENT_*, 0 if none
  bool is_syscall_stop() const;
  bool is_group_stop() const;  ///< PTRACE_EVENT_STOP with a stop signal
  std::string describe() const;

 private:
  int raw_ = 0;
};

Status ptrace_seize(pid_t tid, uint64_t options);
Status ptrace_interrupt(pid_t tid);
Status ptrace_detach(pid_t tid, int signal = 0);
Status ptrace_continue(pid_t tid, int signal = 0);
Status ptrace_to_syscall(pid_t tid, int signal = 0);  ///< PTRACE_SYSCALL
Status ptrace_listen(pid_t tid);
/// Of a PTRACE_EVENT_* stop: at a birth, the child's id as we see it.
Result<uint64_t> ptrace_get_event_message(pid_t tid);
Status ptrace_set_options(pid_t tid, uint64_t options);  ///< PTRACE_O_*
Result<Bytes> ptrace_get_regset(pid_t tid, int type);    ///< NT_PRSTATUS, NT_X86_XSTATE
Status ptrace_set_regset(pid_t tid, int type, ByteView registers);
Result<uint64_t> ptrace_get_sigmask(pid_t tid);
Status ptrace_set_sigmask(pid_t tid, uint64_t mask);
/// All siginfo_t of a queue, oldest first. `shared`: the process's queue, otherwise the thread's.
Result<std::vector<Bytes>> ptrace_peek_siginfo(pid_t tid, bool shared);
Result<Bytes> ptrace_get_siginfo(pid_t tid);
/// Filter `index` of a task's chain, 0 being the first installed (kernel/seccomp.c, get_nth_filter; ptrace(2) has it
/// the wrong way round); nothing past the last. Needs CAP_SYS_ADMIN and no seccomp filter of our own.
struct SeccompFilterView {
  Bytes program;
  uint64_t flags = 0;
};
Result<std::optional<SeccompFilterView>> ptrace_get_seccomp_filter(pid_t tid, unsigned index);
/// Nothing: not registered.
struct RseqConfiguration {
  uint64_t address = 0;
  uint32_t size = 0, signature = 0, flags = 0;
};
Result<RseqConfiguration> ptrace_get_rseq(pid_t tid);

/// waitpid with __WALL; restarts on EINTR. tid -1: any. With WNOHANG and nothing to report the tid is 0.
struct Waited {
  pid_t tid = 0;
  WaitStatus status;
};
Result<Waited> wait_for(pid_t tid, int options = 0);

}  // namespace stasis::kernel
