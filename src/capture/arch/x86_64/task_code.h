// The machine's side of borrowing a thread: its register set, and the code that gives it back.
//
// Two rules of the kernel shape this file.
//
// Interrupted system calls. A thread that ptrace stops inside a system call shows the call's number in orig_rax and an
// internal code in rax (include/linux/errno.h: ERESTARTSYS 512, ERESTARTNOINTR 513, ERESTARTNOHAND 514,
// ERESTART_RESTARTBLOCK 516). When it goes on from a stop, arch_do_signal_or_restart() (arch/x86/kernel/signal.c) looks
// at both and re-issues the call, or runs a handler and returns EINTR. So as long as we live, a thread gets back
// exactly the registers it had, and the kernel decides as if nothing had happened. Registers that must work without
// that (in code that reloads them, in an image) are "plain": the decision is taken here and orig_rax is -1.
//
// Restartable sequences. A thread inside an rseq critical section that is made to run elsewhere has left it: the kernel
// sees the foreign rip, forgets the section and does not abort it any more. So it is aborted here, as the kernel would
// have done on preemption (kernel/rseq.c, rseq_ip_fixup).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>

#include "base/result.h"
#include "base/types.h"
#include "kernel/timed_calls.h"

namespace stasis::capture {

/// What a task's own calls looked like when it was stopped.
enum class Resumption {
  live,   ///< the thread still has its restart block: timed calls go on with what remains
  image,  ///< it will be another thread: the call is made again (see model::InterruptedCall)
};

/// What runs before the thread goes on with the call in which it was stopped, if a signal is pending and not blocked.
/// If all that is known is that it has a handler, it `restarts` what such a handler may restart (SA_RESTART).
enum class Handler { none, restarts, interrupts };

/// A thread of 64-bit code, which is the only kind we know.
bool is_native(ByteView general);

/// Whether the thread may be inside a call that has exchanged its signal mask until it returns (set_user_sigmask in
/// kernel/signal.c), so that its mask is not the one in effect. A call that is not known yet may be such a one.
bool may_have_exchanged_mask(ByteView general);

/// Registers that continue the thread without the kernel's help: calls that the handler ends have ended.
Bytes plain_registers(ByteView general, Resumption, Handler);

/// The number of the call that a restart block stands for: SYS_restart_syscall if it has been restarted before.
std::optional<uint64_t> restartable_call(ByteView general);
kernel::CallArguments call_arguments(ByteView general);
/// As if another call with these arguments had been interrupted.
Bytes with_call_number(ByteView general, uint64_t number);

/// The address that the thread must go on from if it was stopped inside a restartable sequence; nothing to do
/// otherwise.
Status leave_restartable_sequence(pid_t tid, Bytes& general);

/// Registers for a system call by the instruction at `rip`.
Bytes call_registers(ByteView general, uint64_t rip, uint64_t number, const uint64_t (&arguments)[6]);
/// Registers that go on at `rip` with everything else as it is.
Bytes registers_at(ByteView general, uint64_t rip);
/// Registers that start the agent's slot.
Bytes agent_registers(ByteView general, uint64_t area, uint64_t slot, uint64_t stack);
int64_t call_result(ByteView general);
uint64_t call_number(ByteView general);
uint64_t program_counter(ByteView general);
/// At the entry of a system call: whether it is the first one after an agent's last word (of its leave code).
bool is_leaving(ByteView general);

/// The bootstrap stub. From `call_entry` it makes the one system call that the registers say; if that was the mmap of
/// the agent area it unmaps it again (`unmap_entry`); then it puts back signal mask and registers and jumps to where
/// the thread was. The tracer takes the thread away right after the call: what follows runs when there is no tracer any
/// more.
struct Stub {
  Bytes code;
  uint64_t call_entry = 0, unmap_entry = 0;  ///< offsets
};
/// `plain` registers as above. The stub leaves alone what neither it nor a system call changes.
Stub make_stub(ByteView plain, uint64_t signal_mask, AddressRange area);
inline constexpr uint64_t stub_space = 256;  ///< no stub is larger

/// The end of an agent slot without a tracer: everything back, and on. Position-independent.
Bytes make_leave_code(ByteView plain, uint64_t signal_mask);
/// The same for the only thread of an address space: goes through the stub, which unmaps the area.
Bytes make_leave_code_through(ByteView plain, uint64_t stub_unmap_address);

}  // namespace stasis::capture
