// Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst. Pages of files count as used there, but go when
// they have to; those of tmpfs do not.
#include "kernel/available_memory.h"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "kernel/proc.h"
#include "kernel/text.h"

namespace stasis::kernel {
namespace {

/// The files of one version of the interface.
struct Interface {
  std::string_view root, limit, used, cached, in_tmpfs;
};
constexpr Interface unified{"/sys/fs/cgroup", "memory.max", "memory.current", "file", "shmem"};
constexpr Interface separate{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache",
                             "total_shmem"};

/// What one cgroup has left; nothing if it has no limit.
std::optional<uint64_t> left_in(const Interface& files, const std::string& directory) {
  const auto read = [&](std::string_view name) {
    return read_file(fmt::format("{}/{}", directory, name)).value_or(std::string());
  };
  const auto limit = to_number<uint64_t>(read(files.limit)), used = to_number<uint64_t>(read(files.used));
  if (!limit || !used) return std::nullopt;  // "max"
  const auto details = read("memory.stat");
  const uint64_t cached = number_after(details, files.cached), in_tmpfs = number_after(details, files.in_tmpfs);
  const uint64_t held = *used - std::min(*used, cached - std::min(cached, in_tmpfs));
  return *limit - std::min(*limit, held);
}

/// Of a cgroup and all above it.
uint64_t left_along(const Interface& files, std::string path) {
  uint64_t left = ~uint64_t{0};
  for (;;) {
    if (path == "/") path.clear();
    if (const auto here = left_in(files, std::string(files.root) + path)) left = std::min(left, *here);
    if (path.empty()) return left;
    path.resize(std::min(path.rfind('/'), path.size() - 1));
  }
}

}  // namespace

uint64_t number_after(std::string_view text, std::string_view word) {
  for (TextCursor lines(text); !lines.done();) {
    TextCursor line(lines.line());
    if (line.word() == word) return line.number<uint64_t>().value_or(0);
  }
  return 0;
}

Result<uint64_t> available_memory() {
  const uint64_t kilobytes = number_after(TRY(read_file("/proc/meminfo")), "MemAvailable:");
  if (kilobytes == 0) return fail(Error::unsupported("read /proc/meminfo", "it does not tell what is available"));
  return kilobytes << 10;
}

Result<uint64_t> available_memory(pid_t pid) {
  uint64_t left = TRY(available_memory());
  const auto text = TRY(read_proc(pid, "cgroup"));
  for (TextCursor lines(text); !lines.done();) {  // "0::/path" or "4:memory:/path"
    TextCursor line(lines.line());
    line.until(':');
    const auto controllers = line.until(':');
    const std::string path(line.rest());
    if (controllers.empty()) left = std::min(left, left_along(unified, path));
    if (controllers == "memory") left = std::min(left, left_along(separate, path));
  }
  return left;
}

uint64_t resident(pid_t pid) {
  const auto size = read_proc(pid, "statm").value_or("");
  TextCursor numbers(size);
  (void)numbers.number<uint64_t>();  // what is mapped
  return numbers.number<uint64_t>().value_or(0) * page_size;
}

bool has_resident(pid_t root, uint64_t bytes) {
  constexpr size_t most = 8;
  std::vector<pid_t> tree{root};
  uint64_t found = 0;
  for (size_t index = 0; index < std::min(tree.size(), most) && found < bytes; ++index) {
    found += resident(tree[index]);
    // Children of the first thread: most have no others.
    const auto text = read_proc(tree[index], fmt::format("task/{}/children", tree[index])).value_or("");
    TextCursor children(text);
    for (auto child = children.number<pid_t>(); child; child = children.number<pid_t>()) tree.push_back(*child);
  }
  return found >= bytes;
}

}  // namespace stasis::kernel
