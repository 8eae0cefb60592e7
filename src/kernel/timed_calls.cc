#include "kernel/timed_calls.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>

#include <algorithm>
#include <limits>

namespace stasis::kernel {
namespace {

constexpr uint64_t ns_per_ms = 1'000'000;
constexpr uint64_t most_milliseconds = std::numeric_limits<int32_t>::max();
constexpr size_t no_argument = ~size_t{0};

/// Which argument is what.
struct Form {
  uint32_t number;
  size_t duration;
  size_t remainder;
};
constexpr Form forms[] = {
    {SYS_nanosleep, 0, 1}, {SYS_clock_nanosleep, 2, 3}, {SYS_poll, 2, no_argument}, {SYS_futex, 3, no_argument}};

const Form* form_of(uint64_t number) {
  const auto* found = std::ranges::find(forms, number, &Form::number);
  return found == std::end(forms) ? nullptr : found;
}

/// A duration on CLOCK_REALTIME does not change when that clock is set: it is measured by CLOCK_MONOTONIC
/// (kernel/time/hrtimer.c, __hrtimer_setup).
std::optional<TimerClock> clock_of_sleep(uint64_t clock) {
  switch (static_cast<int>(clock)) {
    case CLOCK_REALTIME:
    case CLOCK_MONOTONIC:
      return TimerClock::monotonic;
    case CLOCK_BOOTTIME:
      return TimerClock::boottime;
    case CLOCK_TAI:
      return TimerClock::tai;
    default:
      return std::nullopt;
  }
}

constexpr uint64_t clocks = 16;  // MAX_CLOCKS; no address is that small

/// What can have just these arguments: addresses, numbers of descriptors and operations of futexes differ.
std::optional<uint32_t> call_with(const CallArguments& arguments) {
  const auto is_address = [&](size_t index) { return arguments[index] > std::numeric_limits<uint32_t>::max(); };
  if (arguments[0] < clocks && is_address(2)) return SYS_clock_nanosleep;
  if (!is_address(0)) return std::nullopt;
  if (is_address(1)) return SYS_nanosleep;
  const uint64_t operation = arguments[1] & FUTEX_CMD_MASK;
  if (operation == FUTEX_WAIT || operation == FUTEX_WAIT_BITSET) return std::nullopt;
  return SYS_poll;
}

}  // namespace

bool is_timed_call(uint64_t number) { return form_of(number) != nullptr; }

std::optional<TimedRequest> timed_request(uint64_t number, const CallArguments& arguments) {
  const auto* form = form_of(number);
  if (form == nullptr) return std::nullopt;
  TimedRequest request{.number = form->number, .clock = TimerClock::monotonic};
  if (number == SYS_poll) {
    const auto milliseconds = static_cast<int32_t>(arguments[form->duration]);
    if (milliseconds < 0) return std::nullopt;
    request.duration_ns = static_cast<uint64_t>(milliseconds) * ns_per_ms;
    return request;
  }
  request.duration_at = arguments[form->duration];
  if (request.duration_at == 0) return std::nullopt;
  if (number == SYS_futex) {
    if ((arguments[1] & FUTEX_CMD_MASK) != FUTEX_WAIT) return std::nullopt;
    return request;
  }
  if (number == SYS_clock_nanosleep) {
    if ((arguments[1] & TIMER_ABSTIME) != 0) return std::nullopt;
    request.clock = clock_of_sleep(arguments[0]);
  }
  request.remainder_at = arguments[form->remainder];
  request.exact = true;
  return request;
}

std::optional<uint32_t> call_behind_restart(std::string_view wchan, const CallArguments& arguments) {
  const auto in = [&](std::string_view name) { return wchan.find(name) != std::string_view::npos; };
  if (in("poll")) return SYS_poll;
  if (in("futex")) return SYS_futex;
  // Those of CPU and alarm clocks, which clock_nanosleep alone knows.
  if (in("cpu_nsleep") || in("cpu_nanosleep") || in("alarm")) return SYS_clock_nanosleep;
  // The function that sleeps on another clock counts as part of the scheduler, and its caller is shown, down to the
  // entry of system calls.
  if (in("nanosleep") || in("syscall") || in("sys_call"))
    return arguments[0] < clocks ? SYS_clock_nanosleep : SYS_nanosleep;
  return call_with(arguments);
}

CallArguments with_duration(uint32_t number, CallArguments arguments, uint64_t duration_ns, uint64_t timespec_at) {
  const auto* form = form_of(number);
  if (form == nullptr) return arguments;
  arguments[form->duration] =
      number == SYS_poll ? std::min(duration_ns / ns_per_ms + (duration_ns % ns_per_ms != 0), most_milliseconds)
                         : timespec_at;
  return arguments;
}

}  // namespace stasis::kernel
