// Independent steps on all processors. Capturing a tree is thousands of short reads of /proc, and none needs another.
#pragma once

#include <cstddef>
#include <functional>
#include <thread>

#include "base/result.h"

namespace stasis {

/// Calls `step(0)` … `step(count - 1)`, in any order and from several threads, and returns when all have ended. After
/// the first error no further steps are begun; the error of the lowest index is returned. Steps must not touch what
/// other steps touch. ptrace(2) belongs to the thread that attached: no step may use it. Fewer steps than
/// `worth_a_thread` are done before a second thread has started: the caller does them alone.
Status parallel_for(size_t count, const std::function<Status(size_t)>& step, size_t worth_a_thread = 32);

/// A thread that begins on another processor than ours, if there is one. The kernel may leave a new thread behind the
/// one that started it until one of its ticks finds another processor idle (kernel/sched/fair.c): seen for up to 3 ms
/// where two virtual processors had no common cache. Throws std::system_error where no thread is to be had.
std::jthread start_beside(std::function<void()> work);

/// Processors that this process may run on; asked once.
unsigned processor_count();

}  // namespace stasis
