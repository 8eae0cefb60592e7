// timerfd_create(2).
//
// A timer is never read: fdinfo shows what it is set to, and the expirations that nobody has read (ticks). Of an
// interval timer whose expiration is not read yet the kernel stops the clock and counts the periods only when somebody
// asks (fs/timerfd.c, timerfd_read_iter and do_timerfd_gettime): of such a one the remaining time is asked for once,
// which sets it going again without any reader noticing.
//
// What remained at the dump remains at the restore, except for timers that were set to a time of day (TFD_TIMER_ABSTIME
// with a real-time clock): these keep their time of day, also if it has passed meanwhile.
//
// Cannot be seen: that a timer was cancelled by a change of the clock which nobody has read yet (ECANCELED).
#include "resource/timerfd.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>

#include <algorithm>
#include <array>

#include "kernel/fdinfo.h"
#include "resource/anonymous_room.h"

namespace stasis::resource {
namespace {

using plan::call;

constexpr uint64_t nanoseconds = 1'000'000'000;
constexpr uint64_t longest_seconds = uint64_t{INT64_MAX} / nanoseconds - 1;  ///< the kernel's times are signed
constexpr uint32_t known_flags = TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET;
constexpr unsigned long set_ticks = 0x40085400;  ///< TFD_IOC_SET_TICKS of linux/timerfd.h, which glibc's header shadows
constexpr std::array clocks{CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME_ALARM,
                            CLOCK_BOOTTIME_ALARM};

struct Timerfd final : model::KindValue {
  int32_t clock = 0;
  uint32_t settime_flags = 0;
  uint64_t ticks = 0;
  uint64_t remaining_ns = 0, interval_ns = 0;
  uint64_t expires_ns = 0;  ///< of a timer that is set to a time of day; 0: of none, or not armed

  bool is_armed() const { return remaining_ns != 0; }
  bool is_started() const { return is_armed() || ticks != 0; }
  bool wakes() const { return clock == CLOCK_REALTIME_ALARM || clock == CLOCK_BOOTTIME_ALARM; }
  bool is_real_time() const { return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_ALARM; }
  /// Whether TFD_TIMER_ABSTIME makes a difference once it is set.
  bool is_time_of_day() const { return is_real_time() && (settime_flags & TFD_TIMER_ABSTIME) != 0; }

  std::string_view kind() const override { return "timerfd"; }
  /// Time passes: what remains and what nobody has read is not compared.
  bool equals(const model::KindValue& other) const override {
    const auto* same = dynamic_cast<const Timerfd*>(&other);
    return same != nullptr && clock == same->clock && interval_ns == same->interval_ns &&
           is_started() == same->is_started() && is_time_of_day() == same->is_time_of_day() &&
           (!is_time_of_day() || settime_flags == same->settime_flags);
  }
  std::string describe() const override {
    return fmt::format("timerfd of clock {}, {} ns remaining, interval {} ns, {} ticks", clock, remaining_ns,
                       interval_ns, ticks);
  }
};

timespec to_timespec(uint64_t ns) {
  return {static_cast<time_t>(ns / nanoseconds), static_cast<long>(ns % nanoseconds)};
}

uint64_t time_of_day() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * nanoseconds + static_cast<uint64_t>(now.tv_nsec);
}

class TimerfdRoom final : public AnonymousRoom<timerfd_entry, &image::FileRecord::has_tfd, &image::FileRecord::tfd,
                                               &image::FileRecord::mutable_tfd> {
 public:
  TimerfdRoom() : AnonymousRoom("anon_inode:[timerfd]", TIMERFD) {}
  std::string_view kind() const override { return "timerfd"; }
  bool can_be_inherited(const model::OpenDescription&) const override { return true; }

  Result<model::KindState> capture(CaptureContext&, const DescriptorProbe& probe) const override {
    const auto info = TRY_IN("look at " + probe.subject, look(probe));
    auto state = std::make_shared<Timerfd>();
    state->clock = info.clock, state->settime_flags = info.settime_flags, state->ticks = info.ticks;
    state->remaining_ns = info.remaining_ns, state->interval_ns = info.interval_ns;
    if (state->is_time_of_day() && state->is_armed()) state->expires_ns = time_of_day() + info.remaining_ns;
    return model::KindState{std::move(state)};
  }

  bool starts_last(const model::KindState& state) const override { return state.as<Timerfd>()->is_started(); }

  void validate_all(const model::Application& application, Diagnostics& diagnostics) const override {
    const auto has_ticks = [](const auto& entry) {
      const auto* timer = entry.second.state.template as<Timerfd>();
      return timer != nullptr && timer->ticks != 0;
    };
    const auto found = std::ranges::find_if(application.descriptions, has_ticks);
    if (found == application.descriptions.end()) return;
    const UniqueFd trial(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
    const uint64_t one = 1;
    if (ioctl(trial.get(), set_ticks, &one) == 0) return;
    diagnostics.refuse(found->second.state.value->describe(), "this kernel cannot set the ticks of a timerfd",
                       "use a kernel with CONFIG_CHECKPOINT_RESTORE");
  }

  Status make(const model::Application&, std::span<const plan::Placement> placements, plan::Sink& sink) const override {
    for (const auto& placement : placements) {
      const auto& state = *placement.description->state.as<Timerfd>();
      plan::Perform perform{state.describe(), "", needs(state), {}, {call(SYS_timerfd_create, state.clock, 0)}};
      place(placement, perform);
      sink.add(std::move(perform));
    }
    return {};
  }

  void start(const model::Application&, const model::OpenDescription& description, int fd,
             plan::Sink& sink) const override {
    const auto& state = *description.state.as<Timerfd>();
    plan::Perform perform{fmt::format("start timerfd {}", fd), "", needs(state), {}, {}};
    perform.starts.push_back({fd, description.id});
    const bool absolute = state.expires_ns != 0;
    const itimerspec when{to_timespec(state.interval_ns),
                          to_timespec(absolute ? state.expires_ns : state.remaining_ns)};
    if (state.is_armed()) {
      perform.calls.push_back(
          call(SYS_timerfd_settime, fd, absolute ? state.settime_flags : 0, plan::struct_in(when), 0));
    }
    if (state.ticks != 0) perform.calls.push_back(call(SYS_ioctl, fd, set_ticks, plan::struct_in(state.ticks)));
    sink.add(std::move(perform));
  }

 protected:
  Status write(const model::Application&, const model::OpenDescription& description,
               timerfd_entry& entry) const override {
    const auto& state = *description.state.as<Timerfd>();
    entry.set_clockid(static_cast<uint32_t>(state.clock)), entry.set_ticks(state.ticks);
    entry.set_settime_flags(state.settime_flags);
    entry.set_vsec(state.remaining_ns / nanoseconds), entry.set_vnsec(state.remaining_ns % nanoseconds);
    entry.set_isec(state.interval_ns / nanoseconds), entry.set_insec(state.interval_ns % nanoseconds);
    if (state.expires_ns != 0) entry.set_expires_ns(state.expires_ns);
    return {};
  }

  Status read(const image::FileRecord& record, const timerfd_entry& entry, model::Application&,
              model::OpenDescription& description) const override {
    auto state = std::make_shared<Timerfd>();
    state->clock = static_cast<int32_t>(entry.clockid());
    if (std::ranges::find(clocks, state->clock) == clocks.end())
      return bad_entry(kind(), record, "tfd.clockid", fmt::format("{} is no clock of a timerfd", entry.clockid()));
    state->settime_flags = entry.settime_flags();
    if ((state->settime_flags & ~known_flags) != 0)
      return bad_entry(kind(), record, "tfd.settime_flags", fmt::format("{:#x} is unknown", entry.settime_flags()));
    if (entry.vsec() > longest_seconds || entry.vnsec() >= nanoseconds)
      return bad_entry(kind(), record, "tfd.vsec", "the remaining time is out of range");
    if (entry.isec() > longest_seconds || entry.insec() >= nanoseconds)
      return bad_entry(kind(), record, "tfd.isec", "the interval is out of range");
    if (entry.expires_ns() / nanoseconds > longest_seconds)
      return bad_entry(kind(), record, "tfd.expires_ns", "the time of day is out of range");
    state->ticks = entry.ticks();
    state->remaining_ns = entry.vsec() * nanoseconds + entry.vnsec();
    state->interval_ns = entry.isec() * nanoseconds + entry.insec();
    // CRIU takes a timer whose expiration nobody has read as it stands: without time, but not disarmed.
    if (state->remaining_ns == 0 && state->ticks != 0) state->remaining_ns = state->interval_ns;
    if (state->is_time_of_day() && state->is_armed()) {
      const uint64_t expected = time_of_day() + state->remaining_ns;  // of an image that does not say
      state->expires_ns = entry.has_expires_ns() ? entry.expires_ns() : expected;
    }
    description.state = {std::move(state)};
    return {};
  }

 private:
  static std::vector<std::string> needs(const Timerfd& state) {
    if (state.wakes()) return {"CAP_WAKE_ALARM"};
    return {};
  }

  static Result<kernel::TimerfdInfo> look(const DescriptorProbe& probe) {
    auto info = TRY(kernel::parse_timerfd(probe.info));
    const int fd = TRY(probe.duplicate());
    // Not more often than this: a timer with the shortest interval expires again at once.
    for (int attempts = 10; info.ticks != 0 && info.remaining_ns == 0 && info.interval_ns != 0 && attempts > 0;
         --attempts) {
      itimerspec now{};
      if (timerfd_gettime(fd, &now) != 0) return fail_errno("timerfd_gettime", probe.subject);
      info = TRY(kernel::parse_timerfd(TRY(kernel::read_record(probe.witness, fmt::format("fdinfo/{}", probe.fd)))));
    }
    if (info.ticks != 0 && info.remaining_ns == 0) info.remaining_ns = info.interval_ns;
    return info;
  }
};

}  // namespace

const FileRoom& timerfd_room() {
  static const TimerfdRoom room;
  return room;
}

}  // namespace stasis::resource
