#include "execute/namespace_ends.h"

#include <elf.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "agent/area.h"
#include "base/result.h"
#include "execute/arch/x86_64/final_registers.h"
#include "kernel/proc.h"
#include "kernel/ptrace.h"

namespace stasis::execute {
namespace {

constexpr uint64_t exiting = 4;  // PF_EXITING: nothing can be asked of it any more

bool is_init(const kernel::StatusInfo& ids) { return ids.ns_pid.size() > 1 && ids.ns_pid.back() == 1; }
bool is_in_own_group(const kernel::StatusInfo& ids) { return ids.ns_pgid.back() == 1; }

pid_t living_thread(pid_t pid) {
  for (const pid_t tid : kernel::list_threads(pid).value_or(std::vector<pid_t>{})) {
    const auto stat = kernel::read_thread_stat(pid, tid);
    if (stat && !stat->is_dead() && (stat->flags & exiting) == 0) return tid;
  }
  return 0;
}

/// Nobody waits long for a process that was to be killed anyway.
Status wait_for_stop(pid_t tid, bool of_system_call) {
  for (int patience = 10'000; patience > 0; --patience) {
    const auto waited = TRY(kernel::wait_for(tid, WNOHANG));
    if (waited.tid == 0) {
      usleep(100);
    } else if (!waited.status.stopped()) {
      return fail(Error::gone("stop the init", "it has ended"));
    } else if (!of_system_call || waited.status.is_syscall_stop()) {
      return {};
    } else {
      TRY(kernel::ptrace_to_syscall(tid));
    }
  }
  return fail(Error::conflict("stop the init", "it does not stop"));
}

Status stop(pid_t pid, pid_t tid) {
  const bool ours = TRY(kernel::read_thread_status(pid, tid)).tracer == getpid();
  constexpr uint64_t options = PTRACE_O_TRACESYSGOOD;
  // What its filter lets through was not written for us; but to look away takes CAP_SYS_ADMIN.
  if (!ours && !kernel::ptrace_seize(tid, options | PTRACE_O_SUSPEND_SECCOMP)) TRY(kernel::ptrace_seize(tid, options));
  if (kernel::ptrace_get_regset(tid, NT_PRSTATUS)) return {};  // it stands
  TRY(kernel::ptrace_interrupt(tid));
  return wait_for_stop(tid, false);
}

Status leave_group(pid_t tid, uint64_t syscall_instruction) {
  const auto general = TRY(kernel::ptrace_get_regset(tid, NT_PRSTATUS));
  TRY(kernel::ptrace_set_regset(tid, NT_PRSTATUS, registers_for_call(general, syscall_instruction, SYS_setpgid, {})));
  for (int stop = 0; stop < 2; ++stop) {  // at the call's entry and at its end
    TRY(kernel::ptrace_to_syscall(tid));
    TRY(wait_for_stop(tid, true));
  }
  return {};
}

}  // namespace

void NamespaceEnds::prepare(const std::vector<pid_t>& doomed) {
  const auto instruction = find_syscall_instruction(agent::blob());
  for (const pid_t pid : doomed) {
    auto ids = kernel::read_status(pid);
    if (!ids || !is_init(*ids) || !prepared_.insert(pid).second) continue;
    const pid_t tid = living_thread(pid);
    if (tid == 0 || !stop(pid, tid)) continue;
    ids = kernel::read_status(pid);  // what it is now that it stands it stays
    if (ids && !is_in_own_group(*ids) && instruction)
      (void)leave_group(tid, agent_area_.begin + *instruction);  // whatever fails here, it is killed next
  }
}

}  // namespace stasis::execute
