// System calls that sleep for a duration and, when they are interrupted, leave the end of it in the thread's restart
// block (ERESTART_RESTARTBLOCK; kernel/time/hrtimer.c, fs/select.c, kernel/futex/waitwake.c). From there
// restart_syscall(2) takes it, whose number stands in the registers from then on, beside the arguments of the original
// call. Nothing shows the block.
//
// ppoll, select and pselect need no such thing: they write what remains to where they read it from, and are made again.
// So are calls with an absolute time.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include "kernel/timer_list.h"

namespace stasis::kernel {

using CallArguments = std::array<uint64_t, 6>;

/// What a call asked for.
struct TimedRequest {
  uint32_t number = 0;
  std::optional<uint64_t> duration_ns;  ///< if a register says so
  uint64_t duration_at = 0;             ///< otherwise: the address of a timespec
  uint64_t remainder_at = 0;            ///< where an interruption has written what remained, a timespec; 0: nowhere
  std::optional<TimerClock> clock;  ///< of its timer; nothing: it has none of the listed kind (CPU and alarm clocks)
  bool exact = false;               ///< the timer of the restarted call has no slack
};
/// Nothing: not a timed call, or one whose time is absolute or infinite.
std::optional<TimedRequest> timed_request(uint64_t number, const CallArguments&);

bool is_timed_call(uint64_t number);

/// What a thread in restart_syscall called once, by the kernel function that it sleeps in (/proc/PID/wchan) and its
/// arguments. It may sleep for another reason just then, or have been stopped again by a signal before it slept: then
/// the arguments alone must tell. Nothing: they do not.
std::optional<uint32_t> call_behind_restart(std::string_view wchan, const CallArguments&);

/// The arguments for making a timed call again with another duration. `timespec_at`: the address of one that says so,
/// for the calls that want it. Milliseconds are rounded up.
CallArguments with_duration(uint32_t number, CallArguments, uint64_t duration_ns, uint64_t timespec_at);

}  // namespace stasis::kernel
