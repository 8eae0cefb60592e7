#include "kernel/timer_list.h"

#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <set>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "kernel/proc.h"
#include "kernel/text.h"

namespace stasis::kernel {
namespace {

constexpr const char* path = "/proc/timer_list";

Error malformed(std::string_view line) {
  return Error::invalid("parse timer_list", fmt::format("malformed line '{}'", line.substr(0, 80)));
}

/// The number behind a label, which may follow blanks.
std::optional<int64_t> labelled(std::string_view line, std::string_view label) {
  const size_t at = line.find(label);
  if (at == std::string_view::npos) return std::nullopt;
  return to_number<int64_t>(line.substr(at + label.size()));
}

/// " #3: <000000009647552f>, hrtimer_wakeup, S:01": the address, as the kernel disguises it, tells timers apart that
/// are alike.
std::string_view place_of(std::string_view line) {
  const size_t begin = line.find('<'), end = line.find('>');
  return begin < end && end != std::string_view::npos ? line.substr(begin, end - begin) : std::string_view();
}

/// " # expires at 657004527767-657004577767 nsecs [in …]"
bool parse_expiry(std::string_view line, SleepTimer& timer) {
  constexpr std::string_view label = "expires at ";
  const size_t at = line.find(label);
  if (at == std::string_view::npos) return false;
  TextCursor cursor(line.substr(at + label.size()));
  const auto soft = cursor.number<int64_t>();
  if (!soft || !cursor.rest().starts_with('-')) return false;
  cursor.skip(1);
  const auto hard = cursor.number<int64_t>();
  if (!hard || *hard < *soft) return false;
  timer.soft = *soft, timer.hard = *hard;
  return true;
}

}  // namespace

void TimerList::merge(const TimerList& other) {
  std::vector<SleepTimer> all;
  const auto expires = [](const SleepTimer& timer) { return std::pair(timer.clock, timer.soft); };
  std::ranges::set_union(sleeps, other.sleeps, std::back_inserter(all), {}, expires, expires);
  sleeps = std::move(all);
}

Result<TimerList> parse_timer_list(std::string_view text) {
  TimerList list;
  TextCursor cursor(text);
  bool has_time = false;
  std::array<int64_t, timer_clocks> offsets{};
  size_t clock = 0;
  std::set<std::pair<SleepTimer, std::string_view>> seen;  // one may come twice
  while (!cursor.done()) {
    const auto line = cursor.line();
    if (line.starts_with("now at ")) {
      const auto now = labelled(line, "now at ");
      if (!now) return fail(malformed(line));
      list.now.fill(*now);
      has_time = true;
    } else if (line.starts_with(" clock ")) {
      const auto number = to_number<size_t>(line.substr(7));
      if (!number) return fail(malformed(line));
      clock = *number % timer_clocks;  // each has a second base, for timers that expire in softirq context
    } else if (line.starts_with("  .offset:")) {
      const auto offset = labelled(line, ":");
      if (!offset) return fail(malformed(line));
      offsets[clock] = *offset;
    } else if (line.starts_with(" #") && line.find(", hrtimer_wakeup,") != std::string_view::npos) {
      SleepTimer timer{.clock = static_cast<TimerClock>(clock)};
      const auto expiry = cursor.line();
      if (!parse_expiry(expiry, timer)) return fail(malformed(expiry));
      if (seen.emplace(timer, place_of(line)).second) list.sleeps.push_back(timer);
    }
  }
  // Masked files are empty.
  if (!has_time) return fail(Error::invalid("parse timer_list", "there is no line 'now at'"));
  for (size_t index = 0; index < timer_clocks; ++index) list.now[index] += offsets[index];
  std::ranges::sort(list.sleeps);
  return list;
}

Result<TimerList> read_timer_list() {
  constexpr int most_readings = 16;  // timers may end faster than they can be read
  const auto read = []() -> Result<TimerList> { return parse_timer_list(TRY(read_file(path))); };
  auto list = TRY(read());
  auto last = list;
  for (int reading = 1; reading < most_readings; ++reading) {
    auto next = TRY(read());
    if (next.sleeps == last.sleeps) break;
    list.merge(next);
    last = std::move(next);
  }
  return list;
}

bool may_read_timer_list() { return access(path, R_OK) == 0; }

}  // namespace stasis::kernel
