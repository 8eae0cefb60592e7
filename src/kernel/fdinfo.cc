#include "kernel/fdinfo.h"

#include <fmt/format.h>

#include "kernel/text.h"

namespace stasis::kernel {
namespace {

constexpr uint64_t nanoseconds = 1'000'000'000;

Error malformed(std::string_view key) {
  return Error::invalid("parse fdinfo", fmt::format("field '{}' is missing or malformed", key));
}

/// What follows "KEY:" at the beginning of a line, blanks skipped.
std::optional<std::string_view> value_of(std::string_view text, std::string_view key) {
  TextCursor lines(text);
  while (!lines.done()) {
    TextCursor line(lines.line());
    if (line.until(':') != key) continue;
    line.skip_blanks();
    return line.rest();
  }
  return std::nullopt;
}

template <typename T>
Result<T> number_of(std::string_view text, std::string_view key, int base = 10) {
  const auto value = value_of(text, key);
  const auto number = value ? to_number<T>(*value, base) : std::nullopt;
  if (!number) return fail(malformed(key));
  return *number;
}

/// "(3, 500)": seconds and nanoseconds.
Result<uint64_t> time_of(std::string_view text, std::string_view key) {
  TextCursor value(value_of(text, key).value_or(""));
  value.until('(');
  const auto seconds = value.number<uint64_t>();
  value.until(',');
  const auto rest = value.number<uint64_t>();
  if (!seconds || !rest || *rest >= nanoseconds || *seconds > ~0ull / nanoseconds - 1) return fail(malformed(key));
  return *seconds * nanoseconds + *rest;
}

/// The words of one line, "KEY:VALUE" or "KEY: VALUE" each.
class LineFields {
 public:
  explicit LineFields(std::string_view line) : line_(line) {}

  template <typename T>
  T number(std::string_view key, int base = 16) {
    const auto found = find(key);
    const auto value = found ? to_number<T>(*found, base) : std::nullopt;
    if (!value) missing_ = key;
    return value.value_or(T{});
  }
  bool has(std::string_view key) const { return find(key).has_value(); }

  FileHandle handle() {
    FileHandle made;
    made.type = number<uint32_t>("fhandle-type");
    const auto size = number<uint32_t>("fhandle-bytes");
    const auto digits = find("f_handle").value_or("");
    for (size_t at = 0; at + 1 < digits.size(); at += 2) {
      const auto byte = to_number<uint8_t>(digits.substr(at, 2), 16);
      if (!byte) break;
      made.bytes.push_back(*byte);
    }
    if (made.bytes.size() != size) missing_ = "f_handle";
    return made;
  }

  /// The key that was asked for in vain; empty: none.
  std::string_view missing() const { return missing_; }

 private:
  std::optional<std::string_view> find(std::string_view key) const {
    for (size_t at = line_.find(key); at != std::string_view::npos; at = line_.find(key, at + 1)) {
      const bool begins = at == 0 || line_[at - 1] == ' ';
      const size_t end = at + key.size();
      if (!begins || end >= line_.size() || line_[end] != ':') continue;
      TextCursor value(line_.substr(end + 1));
      return value.word();
    }
    return std::nullopt;
  }

  std::string_view line_, missing_;
};

/// Calls `read` for each line that begins like this.
template <typename Read>
Status each_line(std::string_view text, std::string_view beginning, Read read) {
  TextCursor lines(text);
  while (!lines.done()) {
    const auto line = lines.line();
    if (!line.starts_with(beginning)) continue;
    LineFields fields(line);
    read(fields);
    if (!fields.missing().empty()) return fail(malformed(fields.missing()));
  }
  return {};
}

}  // namespace

Result<EventfdInfo> parse_eventfd(std::string_view text) {
  EventfdInfo info;
  info.counter = TRY(number_of<uint64_t>(text, "eventfd-count", 16));
  if (value_of(text, "eventfd-semaphore")) info.semaphore = TRY(number_of<int>(text, "eventfd-semaphore")) != 0;
  return info;
}

Result<TimerfdInfo> parse_timerfd(std::string_view text) {
  TimerfdInfo info;
  info.clock = TRY(number_of<int32_t>(text, "clockid"));
  info.ticks = TRY(number_of<uint64_t>(text, "ticks"));
  info.settime_flags = TRY(number_of<uint32_t>(text, "settime flags", 8));
  info.remaining_ns = TRY(time_of(text, "it_value"));
  info.interval_ns = TRY(time_of(text, "it_interval"));
  return info;
}

Result<uint64_t> parse_signalfd(std::string_view text) { return number_of<uint64_t>(text, "sigmask", 16); }

Result<std::vector<EpollTarget>> parse_epoll(std::string_view text) {
  std::vector<EpollTarget> targets;
  TRY(each_line(text, "tfd:", [&](LineFields& line) {
    EpollTarget target;
    target.fd = line.number<int>("tfd", 10);
    target.events = line.number<uint32_t>("events");
    target.data = line.number<uint64_t>("data");
    target.position = static_cast<uint64_t>(line.number<int64_t>("pos", 10));
    target.inode = line.number<uint64_t>("ino");
    target.device = line.number<uint32_t>("sdev");
    targets.push_back(target);
  }));
  return targets;
}

Result<std::vector<InotifyWatch>> parse_inotify(std::string_view text) {
  std::vector<InotifyWatch> watches;
  TRY(each_line(text, "inotify wd:", [&](LineFields& line) {
    InotifyWatch watch;
    watch.descriptor = line.number<int>("wd");
    watch.inode = line.number<uint64_t>("ino");
    watch.device = line.number<uint32_t>("sdev");
    watch.mask = line.number<uint32_t>("mask");
    watch.ignored_mask = line.number<uint32_t>("ignored_mask");
    if (line.has("f_handle")) watch.handle = line.handle();  // not every file system has handles
    watches.push_back(std::move(watch));
  }));
  return watches;
}

Result<FanotifyInfo> parse_fanotify(std::string_view text) {
  FanotifyInfo info;
  bool has_flags = false;
  TRY(each_line(text, "fanotify ", [&](LineFields& line) {
    if (line.has("flags")) {
      info.flags = line.number<uint32_t>("flags");
      info.event_flags = line.number<uint32_t>("event-flags");
      has_flags = true;
      return;
    }
    FanotifyMark mark;
    mark.flags = line.number<uint32_t>("mflags");
    mark.mask = line.number<uint32_t>("mask");
    mark.ignored_mask = line.number<uint32_t>("ignored_mask");
    if (line.has("mnt_id")) {
      mark.kind = FanotifyMark::Kind::mount;
      mark.mount_id = line.number<uint32_t>("mnt_id");
    } else {
      mark.kind = line.has("ino") ? FanotifyMark::Kind::inode : FanotifyMark::Kind::filesystem;
      mark.device = line.number<uint32_t>("sdev");
      if (line.has("ino")) mark.inode = line.number<uint64_t>("ino");
      if (line.has("f_handle")) mark.handle = line.handle();
    }
    info.marks.push_back(std::move(mark));
  }));
  if (!has_flags) return fail(malformed("fanotify flags"));
  return info;
}

namespace {

/// "1: POSIX  ADVISORY  WRITE 4711 fd:01:1038 0 EOF"
std::optional<LockInfo> lock_of(TextCursor line) {
  LockInfo lock;
  line.word();
  lock.kind = line.word();
  lock.breaking = line.word() == "BREAKING";
  lock.type = line.word();
  const auto pid = line.number<pid_t>();
  line.skip_blanks();
  const auto major = to_number<uint32_t>(line.until(':'), 16);
  const auto minor = to_number<uint32_t>(line.until(':'), 16);
  const auto inode = line.number<uint64_t>();
  const auto start = line.number<uint64_t>();
  const auto end = line.word();
  const auto last = end == "EOF" ? std::optional<uint64_t>(0) : to_number<uint64_t>(end);
  if (!pid || !major || !minor || !inode || !start || !last || (end != "EOF" && *last < *start)) return std::nullopt;
  lock.pid = *pid, lock.device_major = *major, lock.device_minor = *minor, lock.inode = *inode;
  lock.start = *start, lock.length = end == "EOF" ? 0 : *last - *start + 1;
  return lock;
}

}  // namespace

Result<std::vector<LockInfo>> parse_locks(std::string_view fdinfo) {
  std::vector<LockInfo> locks;
  TextCursor lines(fdinfo);
  while (!lines.done()) {
    TextCursor line(lines.line());
    if (line.until(':') != "lock") continue;
    const auto lock = lock_of(line);
    if (!lock) return fail(malformed("lock"));
    locks.push_back(*lock);
  }
  return locks;
}

Result<std::vector<LockInfo>> parse_all_locks(std::string_view proc_locks) {
  std::vector<LockInfo> locks;
  TextCursor lines(proc_locks);
  while (!lines.done()) {
    const TextCursor line(lines.line());
    if (line.rest().find("->") != std::string_view::npos) continue;
    const auto lock = lock_of(line);
    if (!lock) return fail(malformed("/proc/locks"));
    locks.push_back(*lock);
  }
  return locks;
}

Result<PidfdInfo> parse_pidfd(std::string_view text) { return PidfdInfo{TRY(number_of<pid_t>(text, "Pid"))}; }

Result<BpfMapInfo> parse_bpf_map(std::string_view text) {
  BpfMapInfo info;
  info.type = TRY(number_of<uint32_t>(text, "map_type"));
  info.key_size = TRY(number_of<uint32_t>(text, "key_size"));
  info.value_size = TRY(number_of<uint32_t>(text, "value_size"));
  info.max_entries = TRY(number_of<uint32_t>(text, "max_entries"));
  const auto flags = value_of(text, "map_flags");
  const auto digits = flags && flags->starts_with("0x") ? to_number<uint32_t>(flags->substr(2), 16) : std::nullopt;
  if (!digits) return fail(malformed("map_flags"));
  info.flags = *digits;
  info.memory = TRY(number_of<uint64_t>(text, "memlock"));
  info.id = TRY(number_of<uint32_t>(text, "map_id"));
  info.frozen = TRY(number_of<uint32_t>(text, "frozen")) != 0;
  return info;
}

}  // namespace stasis::kernel
