// What remains of the sleeps of stopped threads.
//
// The end of a sleep that a stop has interrupted is in the thread's restart block, which nothing shows. So the threads
// in question are let into their calls once more: restart_syscall puts the timer back into the list that
// /proc/timer_list shows, they are interrupted again, and capture::TimerMatch finds out whose is which. Between its
// stops such a thread executes the system call instruction and nothing else, and if stasis dies meanwhile it sleeps on
// as after any stop. When its call comes to an end instead (the time is up, what poll waits for is there), its
// registers are taken again.
//
// Where the list cannot be read (it needs root, and no container's mask over it), what remains is only known if the
// call has a place to note it in; without, a restore makes the call again from the start.
#pragma once

#include <vector>

#include "base/result.h"
#include "capture/walk.h"
#include "resource/capture_context.h"

namespace stasis::capture {

/// Fills Thread::interrupted_call of threads that the walk has found asleep for a duration.
Status measure_sleeps(std::vector<LiveProcess>&, resource::CaptureContext&, const AtPoint&, Clock::time_point deadline);

}  // namespace stasis::capture
