// /proc/PID/maps and smaps. Read for every process of a dump, so nothing is allocated that is not kept.
#include <sys/mman.h>

#include <fmt/format.h>

#include "kernel/proc.h"
#include "kernel/text.h"

namespace stasis::kernel {
namespace {

Error malformed(std::string_view line) {
  return Error::invalid("parse maps", fmt::format("malformed line '{}'", line.substr(0, 80)));
}

/// seq_path(…, "\n") escapes the newline and nothing else.
std::string unescape(std::string_view path) {
  std::string text;
  text.reserve(path.size());
  for (size_t at = 0; at < path.size(); ++at) {
    if (path.substr(at, 4) == "\\012") {
      text += '\n';
      at += 3;
    } else {
      text += path[at];
    }
  }
  return text;
}

/// "7f00-7f10 rw-p 00000000 08:01 4711      /path"
bool parse_header(std::string_view line, MapsEntry& entry) {
  TextCursor cursor(line);
  const auto begin = cursor.number<uint64_t>(16);
  cursor.skip(1);
  const auto end = cursor.number<uint64_t>(16);
  const auto permissions = cursor.word();
  const auto offset = cursor.number<uint64_t>(16);
  const auto major = cursor.number<uint32_t>(16);
  cursor.skip(1);
  const auto minor = cursor.number<uint32_t>(16);
  const auto inode = cursor.number<uint64_t>();
  if (!begin || !end || *end < *begin || permissions.size() != 4 || !offset || !major || !minor || !inode) return false;
  entry.range = {*begin, *end};
  entry.protection = (permissions[0] == 'r' ? PROT_READ : 0u) | (permissions[1] == 'w' ? PROT_WRITE : 0u) |
                     (permissions[2] == 'x' ? PROT_EXEC : 0u);
  entry.shared = permissions[3] == 's';
  entry.offset = *offset;
  entry.device_major = *major;
  entry.device_minor = *minor;
  entry.inode = *inode;
  cursor.skip_blanks();
  if (!cursor.done()) entry.path = unescape(cursor.rest());
  return true;
}

bool parse_kilobytes(TextCursor& cursor, uint64_t& bytes) {
  const auto number = cursor.number<uint64_t>();
  if (!number || *number > (~uint64_t{0} >> 10)) return false;
  bytes = *number << 10;
  return true;
}

/// A line of smaps below the header.
bool parse_attribute(std::string_view line, MapsEntry& entry) {
  TextCursor cursor(line);
  const auto key = cursor.until(':');
  if (key == "Rss") return parse_kilobytes(cursor, entry.rss_bytes);
  if (key == "Anonymous") return parse_kilobytes(cursor, entry.anonymous_bytes);
  if (key == "Swap") return parse_kilobytes(cursor, entry.swap_bytes);
  if (key == "KernelPageSize") return parse_kilobytes(cursor, entry.kernel_page_size);
  if (key == "ProtectionKey") {
    const auto number = cursor.number<int>();
    entry.protection_key = number.value_or(0);
    return number.has_value();
  }
  if (key == "VmFlags") {
    entry.has_vm_flags = true;
    for (auto word = cursor.word(); !word.empty(); word = cursor.word()) entry.vm_flags.insert(word);
  }
  return true;
}

/// Headers begin with an address (lower-case hexadecimal), attributes with a capital letter.
bool is_header(std::string_view line) {
  return !line.empty() && ((line[0] >= '0' && line[0] <= '9') || (line[0] >= 'a' && line[0] <= 'f'));
}

}  // namespace

Result<std::vector<MapsEntry>> parse_maps(std::string_view text) {
  std::vector<MapsEntry> entries;
  TextCursor lines(text);
  while (!lines.done()) {
    const auto line = lines.line();
    if (is_header(line)) {
      entries.emplace_back();
      if (!parse_header(line, entries.back())) return fail(malformed(line));
    } else if (!line.empty()) {
      if (entries.empty() || !parse_attribute(line, entries.back())) return fail(malformed(line));
    }
  }
  return entries;
}

Result<std::vector<MapsEntry>> read_smaps(pid_t pid) { return parse_maps(TRY(read_proc(pid, "smaps"))); }
Result<std::vector<MapsEntry>> read_maps(pid_t pid) { return parse_maps(TRY(read_proc(pid, "maps"))); }

}  // namespace stasis::kernel
