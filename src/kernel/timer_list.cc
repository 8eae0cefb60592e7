#include "kernel/timer_list.h"

#include <unistd.h>

#include <string>

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

/// " #3: <000000009647552f>, hrtimer_wakeup, S:01"
std::string place_of(std::string_view line) {
  const size_t begin = line.find('<'), end = line.find('>');
  return begin < end && end != std::string_view::npos ? std::string(line.substr(begin, end - begin)) : std::string();
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

void TimerList::add(const SleepTimer& timer, const std::string& place) {
  for (size_t index = 0; index < sleeps.size(); ++index) {
    if (sleeps[index] == timer && places[index] == place) return;
  }
  sleeps.push_back(timer);
  places.push_back(place);
}

void TimerList::merge(const TimerList& other) {
  for (size_t index = 0; index < other.sleeps.size(); ++index) add(other.sleeps[index], other.places[index]);
}

Result<TimerList> parse_timer_list(std::string_view text) {
  TimerList list;
  TextCursor cursor(text);
  bool has_time = false;
  std::array<int64_t, timer_clocks> offsets{};
  size_t clock = 0;
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
      list.add(timer, place_of(line));
    }
  }
  // Masked files are empty.
  if (!has_time) return fail(Error::invalid("parse timer_list", "there is no line 'now at'"));
  for (size_t index = 0; index < timer_clocks; ++index) list.now[index] += offsets[index];
  return list;
}

Result<TimerList> read_timer_list() {
  constexpr int further_readings = 2;
  auto list = TRY(parse_timer_list(TRY(read_file(path))));
  for (int reading = 0; reading < further_readings; ++reading) list.merge(TRY(parse_timer_list(TRY(read_file(path)))));
  return list;
}

bool may_read_timer_list() { return access(path, R_OK) == 0; }

}  // namespace stasis::kernel
