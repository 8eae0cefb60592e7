// /proc/PID/stat, status, limits, timers, auxv, fdinfo.
#include <sys/resource.h>

#include <cstring>

#include <fmt/format.h>

#include "kernel/proc.h"
#include "kernel/text.h"

namespace stasis::kernel {
namespace {

Error malformed(std::string_view file, std::string_view field) {
  return Error::invalid(fmt::format("parse {}", file), fmt::format("field '{}' is missing or malformed", field));
}

std::string thread_file(pid_t tid, std::string_view name) { return fmt::format("task/{}/{}", tid, name); }

}  // namespace

// ---- stat

Result<StatInfo> parse_stat(std::string_view text) {
  StatInfo info;
  // comm may hold blanks and parentheses: it ends at the last one.
  const size_t open = text.find('(');
  const size_t close = text.rfind(')');
  if (open == std::string_view::npos || close == std::string_view::npos || close < open) {
    return fail(malformed("stat", "comm"));
  }
  info.comm = text.substr(open + 1, close - open - 1);
  TextCursor cursor(text.substr(close + 1));
  const auto state = cursor.word();
  if (state.empty()) return fail(malformed("stat", "state"));
  info.state = state[0];

  // Fields 4 … 52 of proc(5), signed or not, as 64-bit patterns.
  constexpr int first = 4, last = 52;
  uint64_t fields[last + 1]{};
  for (int index = first; index <= last; ++index) {
    const auto word = cursor.word();
    const auto value = word.starts_with('-')
                           ? to_number<int64_t>(word).transform([](int64_t v) { return static_cast<uint64_t>(v); })
                           : to_number<uint64_t>(word);
    if (!value) return fail(malformed("stat", fmt::format("{}", index)));
    fields[index] = *value;
  }
  const auto pid_at = [&](int index) { return static_cast<pid_t>(fields[index]); };
  info.ppid = pid_at(4);
  info.pgrp = pid_at(5);
  info.session = pid_at(6);
  info.tty_nr = static_cast<int>(fields[7]);
  info.tty_pgrp = pid_at(8);
  info.flags = fields[9];
  info.nice = static_cast<int64_t>(fields[19]);
  info.num_threads = static_cast<int>(fields[20]);
  info.start_time = fields[22];
  info.start_code = fields[26];
  info.end_code = fields[27];
  info.start_stack = fields[28];
  info.start_data = fields[45];
  info.end_data = fields[46];
  info.start_brk = fields[47];
  info.arg_start = fields[48];
  info.arg_end = fields[49];
  info.env_start = fields[50];
  info.env_end = fields[51];
  info.exit_code = static_cast<int>(fields[52]);
  return info;
}

Result<StatInfo> read_stat(pid_t pid) { return parse_stat(TRY(read_record(pid, "stat"))); }
Result<StatInfo> read_thread_stat(pid_t pid, pid_t tid) {
  return parse_stat(TRY(read_record(pid, thread_file(tid, "stat"))));
}

// ---- status

namespace {

/// One line of status: the value is parsed into the field it belongs to. false: malformed.
using StatusField = bool (*)(StatusInfo&, std::string_view);

template <typename T>
bool assign(T& field, std::string_view value, int base) {
  const auto number = to_number<T>(value, base);
  if (number) field = *number;
  return number.has_value();
}
template <auto Member, int Base = 10>
bool scalar(StatusInfo& info, std::string_view value) {
  return assign(info.*Member, value, Base);
}
template <auto Member>
bool list(StatusInfo& info, std::string_view value) {
  TextCursor cursor(value);
  while (const auto number = cursor.number<typename std::remove_reference_t<decltype(info.*Member)>::value_type>()) {
    (info.*Member).push_back(*number);
  }
  cursor.skip_blanks();
  return cursor.done();
}
template <auto Member>
bool four(StatusInfo& info, std::string_view value) {
  TextCursor cursor(value);
  for (auto& number : info.*Member) {
    const auto parsed = cursor.number<uint32_t>();
    if (!parsed) return false;
    number = *parsed;
  }
  return true;
}
template <auto Member>
bool flag(StatusInfo& info, std::string_view value) {
  int number = 0;
  if (!assign(number, value, 10)) return false;
  info.*Member = number != 0;
  return true;
}
bool state(StatusInfo& info, std::string_view value) {
  if (value.empty()) return false;
  info.state = value[0];
  return true;
}
/// string_escape_str(ESCAPE_SPACE | ESCAPE_SPECIAL, "\n\\"): in practice only these two are seen here.
bool name(StatusInfo& info, std::string_view value) {
  info.name.clear();
  for (size_t at = 0; at < value.size(); ++at) {
    if (value[at] == '\\' && at + 1 < value.size() && (value[at + 1] == 'n' || value[at + 1] == '\\')) {
      info.name += value[++at] == 'n' ? '\n' : '\\';
    } else {
      info.name += value[at];
    }
  }
  return true;
}

/// "1024 kB"
bool pinned(StatusInfo& info, std::string_view value) {
  const auto number = TextCursor(value).number<uint64_t>();
  info.pinned_kb = number.value_or(0);
  return number.has_value();
}

bool thread_features(StatusInfo& info, std::string_view value) {
  info.shadow_stack = value.find("shstk") != std::string_view::npos;
  return true;
}

struct StatusLine {
  std::string_view key;
  StatusField parse;
};
/// In the order in which the kernel prints them, so that one pass finds each at once.
constexpr StatusLine status_lines[] = {
    {"Name", name},
    {"Umask", scalar<&StatusInfo::umask, 8>},
    {"State", state},
    {"Tgid", scalar<&StatusInfo::tgid>},
    {"Pid", scalar<&StatusInfo::pid>},
    {"PPid", scalar<&StatusInfo::ppid>},
    {"TracerPid", scalar<&StatusInfo::tracer>},
    {"Uid", four<&StatusInfo::uids>},
    {"Gid", four<&StatusInfo::gids>},
    {"FDSize", scalar<&StatusInfo::descriptor_table_size>},
    {"Groups", list<&StatusInfo::groups>},
    {"NStgid", list<&StatusInfo::ns_tgid>},
    {"NSpid", list<&StatusInfo::ns_pid>},
    {"NSpgid", list<&StatusInfo::ns_pgid>},
    {"NSsid", list<&StatusInfo::ns_sid>},
    {"VmPin", pinned},
    {"THP_enabled", flag<&StatusInfo::thp_enabled>},
    {"SigPnd", scalar<&StatusInfo::sig_pending, 16>},
    {"ShdPnd", scalar<&StatusInfo::shared_pending, 16>},
    {"SigBlk", scalar<&StatusInfo::blocked, 16>},
    {"SigIgn", scalar<&StatusInfo::ignored, 16>},
    {"SigCgt", scalar<&StatusInfo::caught, 16>},
    {"CapInh", scalar<&StatusInfo::cap_inheritable, 16>},
    {"CapPrm", scalar<&StatusInfo::cap_permitted, 16>},
    {"CapEff", scalar<&StatusInfo::cap_effective, 16>},
    {"CapBnd", scalar<&StatusInfo::cap_bounding, 16>},
    {"CapAmb", scalar<&StatusInfo::cap_ambient, 16>},
    {"NoNewPrivs", flag<&StatusInfo::no_new_privs>},
    {"Seccomp", scalar<&StatusInfo::seccomp>},
    {"Seccomp_filters", scalar<&StatusInfo::seccomp_filters>},
    {"voluntary_ctxt_switches", scalar<&StatusInfo::voluntary_switches>},
    {"x86_Thread_features", thread_features},
};

}  // namespace

Result<StatusInfo> parse_status(std::string_view text) {
  StatusInfo info;
  TextCursor lines(text);
  size_t next = 0;
  while (!lines.done()) {
    TextCursor line(lines.line());
    const auto key = line.until(':');
    for (size_t step = 0; step < std::size(status_lines); ++step) {
      const auto& wanted = status_lines[(next + step) % std::size(status_lines)];
      if (wanted.key != key) continue;
      line.skip_blanks();
      if (!wanted.parse(info, line.rest())) return fail(malformed("status", key));
      next = (next + step + 1) % std::size(status_lines);
      break;
    }
  }
  if (info.pid == 0) return fail(malformed("status", "Pid"));
  return info;
}

Result<StatusInfo> read_status(pid_t pid) { return parse_status(TRY(read_record(pid, "status"))); }
Result<StatusInfo> read_thread_status(pid_t pid, pid_t tid) {
  return parse_status(TRY(read_record(pid, thread_file(tid, "status"))));
}

// ---- limits

namespace {

/// As fs/proc/base.c lnames[] spells them, by RLIMIT_*.
constexpr std::string_view limit_names[RLIM_NLIMITS] = {
    "Max cpu time",       "Max file size",     "Max data size",         "Max stack size",
    "Max core file size", "Max resident set",  "Max processes",         "Max open files",
    "Max locked memory",  "Max address space", "Max file locks",        "Max pending signals",
    "Max msgqueue size",  "Max nice priority", "Max realtime priority", "Max realtime timeout",
};

std::optional<uint64_t> limit_value(std::string_view word) {
  if (word == "unlimited") return ~uint64_t{0};
  return to_number<uint64_t>(word);
}

}  // namespace

Result<std::vector<LimitInfo>> parse_limits(std::string_view text) {
  std::vector<LimitInfo> limits(RLIM_NLIMITS);
  size_t found = 0;
  TextCursor lines(text);
  while (!lines.done()) {
    const auto line = lines.line();
    for (size_t index = 0; index < RLIM_NLIMITS; ++index) {
      const auto limit_name = limit_names[index];
      if (!line.starts_with(limit_name) || line.size() == limit_name.size() || line[limit_name.size()] != ' ') continue;
      TextCursor values(line.substr(limit_name.size()));
      const auto soft = limit_value(values.word());
      const auto hard = limit_value(values.word());
      if (!soft || !hard) return fail(malformed("limits", limit_name));
      limits[index] = {*soft, *hard};
      ++found;
      break;
    }
  }
  if (found != RLIM_NLIMITS) return fail(malformed("limits", "one of the 16 limits"));
  return limits;
}

Result<std::vector<LimitInfo>> read_limits(pid_t pid) { return parse_limits(TRY(read_record(pid, "limits"))); }

// ---- timers

namespace {

constexpr std::string_view notify_names[] = {"signal", "none", "thread"};  // SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD
constexpr int sigev_thread_id = 4;

bool parse_notify(std::string_view value, ProcTimer& timer) {
  TextCursor cursor(value);
  const auto how = cursor.until('/');
  const auto whom = cursor.until('.');
  const auto pid = cursor.number<pid_t>();
  for (size_t index = 0; index < std::size(notify_names); ++index) {
    if (notify_names[index] == how) timer.notification = static_cast<int32_t>(index);
  }
  if (whom == "tid") timer.notification |= sigev_thread_id;
  if (pid) timer.notified = *pid;
  return pid.has_value() && (whom == "tid" || whom == "pid");
}

}  // namespace

Result<std::vector<ProcTimer>> parse_timers(std::string_view text) {
  std::vector<ProcTimer> timers;
  TextCursor lines(text);
  while (!lines.done()) {
    TextCursor line(lines.line());
    const auto key = line.until(':');
    line.skip_blanks();
    bool good = true;
    if (key == "ID") {
      timers.emplace_back();
      good = assign(timers.back().id, line.rest(), 10);
    } else if (timers.empty()) {
      good = key.empty();
    } else if (key == "signal") {
      good = assign(timers.back().signal, line.until('/'), 10);
      // Printed with %px since 4.15 (bare hexadecimal), with 0x by some.
      if (line.rest().starts_with("0x")) line.skip(2);
      good = good && assign(timers.back().value, line.rest(), 16);
    } else if (key == "notify") {
      good = parse_notify(line.rest(), timers.back());
    } else if (key == "ClockID") {
      good = assign(timers.back().clock, line.rest(), 10);
    }
    if (!good) return fail(malformed("timers", key));
  }
  return timers;
}

Result<std::vector<ProcTimer>> read_timers(pid_t pid) { return parse_timers(TRY(read_proc(pid, "timers"))); }

// ---- auxv

Result<std::vector<uint64_t>> read_auxv(pid_t pid) {
  const auto text = TRY(read_proc(pid, "auxv"));
  std::vector<uint64_t> words(text.size() / sizeof(uint64_t));
  std::memcpy(words.data(), text.data(), words.size() * sizeof(uint64_t));
  return words;
}

// ---- fdinfo

Result<FdInfo> parse_fdinfo(std::string_view text) {
  FdInfo info;
  info.text = text;
  bool has_flags = false;
  TextCursor lines(text);
  while (!lines.done()) {
    TextCursor line(lines.line());
    const auto key = line.until(':');
    line.skip_blanks();
    bool good = true;
    if (key == "pos") {
      int64_t position = 0;  // a negative position is legal for /dev/mem and the like
      good = line.rest().starts_with('-') ? assign(position, line.rest(), 10) : assign(info.position, line.rest(), 10);
      if (position < 0) info.position = static_cast<uint64_t>(position);
    } else if (key == "flags") {
      good = has_flags = assign(info.flags, line.rest(), 8);
    } else if (key == "mnt_id") {
      good = assign(info.mount_id, line.rest(), 10);
    } else if (key == "ino") {
      good = assign(info.inode, line.rest(), 10);
    }
    if (!good) return fail(malformed("fdinfo", key));
    if (key == "ino") break;  // the last of the common fields: what follows belongs to the kind
  }
  if (!has_flags) return fail(malformed("fdinfo", "flags"));
  return info;
}

Result<FdInfo> read_fdinfo(pid_t pid, int fd) {
  return parse_fdinfo(TRY(read_record(pid, fmt::format("fdinfo/{}", fd))));
}

}  // namespace stasis::kernel
