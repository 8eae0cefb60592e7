// Register sets as ptrace takes them on x86-64.
#pragma once

#include "base/result.h"
#include "base/types.h"
#include "kernel/timed_calls.h"
#include "model/task.h"

namespace stasis::execute {

/// General registers of a task that is not inside a system call: orig_rax = -1, so that nothing is restarted.
Result<Bytes> final_general(const model::Registers&);
/// The extended state in this machine's size. A smaller saved state is padded (absent components are in their initial
/// state), a larger one is cut if what is cut is unused.
Result<Bytes> final_extended(const model::Registers&, size_t machine_size);
/// Registers that make a parked thread call the system from the agent's own system call instruction.
Bytes registers_for_call(ByteView general_now, uint64_t syscall_instruction, uint64_t number,
                         const kernel::CallArguments&);
/// The arguments of the call before which the registers stand.
kernel::CallArguments call_arguments(ByteView general);
/// The registers that stand before a call, when it has been made and has this result: as a tracer sees a thread at the
/// end of a call, so that the kernel restarts it if the result says so (arch/x86/kernel/signal.c).
Bytes registers_after_call(ByteView general, int64_t result);
/// Where the stack ends, rounded down.
uint64_t stack_pointer(ByteView general);
/// Offset of a system call instruction in the agent's code.
Result<uint64_t> find_syscall_instruction(ByteView code);
/// rax
int64_t call_result(ByteView general);

}  // namespace stasis::execute
