// What SEM_UNDO (semop(2)) is going to undo when processes end. Only the kernel's memory tells
// (kernel/kernel_memory.h).
//
// It comes into being by operations alone, and SETVAL clears it (ipc/sem.c). So a set is made with values from which
// the operations that lead to it can always be carried out: those that take first, as all there is to give back later
// is there from the beginning. What the others have added is taken away, with nothing to undo, when all have done it.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "base/result.h"
#include "kernel/kernel_memory.h"
#include "namespaces.pb.h"
#include "plan/contributor.h"

namespace stasis::resource {

using Adjustments = std::vector<int16_t>;  ///< of each semaphore of a set: what is added to its value

/// Of one set: by who undoes it.
using SemaphoreUndo = std::map<Pid, Adjustments>;

/// Of the process whose threads these are, by ids of sets. `sizes` are theirs; others are left out. More than one list
/// of such threads is a conflict.
Result<std::map<int32_t, Adjustments>> look_at_undo(const kernel::KernelMemory&, const std::vector<pid_t>& host_tids,
                                                    const std::map<int32_t, size_t>& sizes);

void encode_undo(const SemaphoreUndo&, ipc_sem_entry&);
/// `values`: of the set. `where` is the record.
Result<SemaphoreUndo> decode_undo(const ipc_sem_entry&, const std::vector<uint16_t>& values, const std::string& where);

/// With which values a set is made.
std::vector<uint16_t> values_before_undo(const std::vector<uint16_t>& values, const SemaphoreUndo&);
/// What a process does.
plan::Calls undo_calls(int32_t set, const Adjustments&);
/// What stasis does when all are complete.
plan::Calls calls_after_undo(int32_t set, const SemaphoreUndo&);

}  // namespace stasis::resource
