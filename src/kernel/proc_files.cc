// Reading whole files, links and directories of /proc.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>

#include <fmt/format.h>

#include "base/parallel.h"
#include "base/unique_fd.h"
#include "kernel/proc.h"
#include "kernel/processes.h"
#include "kernel/text.h"

namespace stasis::kernel {
namespace {

constexpr size_t first_buffer = 16 << 10;

enum class Extent { open_ended, record };

/// A failed access to something below /proc/PID. The kernel says ENOENT for a directory that is gone and ESRCH for a
/// task that died while its file was open; ENOENT also stands for a file this kernel does not have.
Error proc_error(std::string operation, pid_t pid, const std::string& path, int error) {
  if (error == ESRCH) return Error::gone(std::move(operation), path);
  if (error == ENOENT && pid != 0 && access(fmt::format("/proc/{}", pid).c_str(), F_OK) != 0) {
    return Error::gone(std::move(operation), path);
  }
  return Error::system(std::move(operation), error, path);
}

/// Size is no guide in procfs: reads until nothing comes, or, of a single record, until it fits.
int read_all(int fd, std::string& text, Extent extent) {
  size_t used = 0;
  size_t capacity = first_buffer;
  for (;;) {
    ssize_t got = 0;
    text.resize_and_overwrite(capacity, [&](char* data, size_t size) {
      do got = read(fd, data + used, size - used);
      while (got < 0 && errno == EINTR);
      return got > 0 ? used + static_cast<size_t>(got) : used;
    });
    if (got < 0) return errno;
    used = text.size();
    if (got == 0 || (extent == Extent::record && used < capacity)) return 0;
    if (capacity - used < capacity / 4) capacity *= 2;
  }
}

Result<std::string> read_path(const std::string& path, pid_t pid, Extent extent = Extent::open_ended,
                              int directory = AT_FDCWD) {
  UniqueFd file(openat(directory, path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return fail(proc_error("open", pid, path, errno));
  std::string text;
  if (const int error = read_all(file.get(), text, extent)) return fail(proc_error("read", pid, path, error));
  return text;
}

struct KernelDirectoryEntry {
  uint64_t inode;
  int64_t offset;
  uint16_t length;
  uint8_t type;
  char name[];
};

/// Entries of a directory whose names are numbers.
Result<std::vector<int>> list_numbers(const std::string& path, pid_t pid) {
  UniqueFd directory(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid()) return fail(proc_error("open", pid, path, errno));
  std::vector<int> numbers;
  alignas(KernelDirectoryEntry) char buffer[32 << 10];
  for (;;) {
    const long got = syscall(SYS_getdents64, directory.get(), buffer, sizeof buffer);
    if (got < 0) return fail(proc_error("getdents64", pid, path, errno));
    if (got == 0) return numbers;
    for (long at = 0; at < got;) {
      const auto* entry = reinterpret_cast<const KernelDirectoryEntry*>(buffer + at);
      if (entry->name[0] >= '0' && entry->name[0] <= '9') {
        if (const auto number = to_number<int>(entry->name)) numbers.push_back(*number);
      }
      at += entry->length;
    }
  }
}

}  // namespace

Result<std::string> read_proc(pid_t pid, std::string_view name) {
  return read_path(fmt::format("/proc/{}/{}", pid, name), pid);
}

Result<std::string> read_record(pid_t pid, std::string_view name) {
  return read_path(fmt::format("/proc/{}/{}", pid, name), pid, Extent::record);
}

Result<std::string> read_record_at(int directory, const std::string& name) {
  return read_path(name, 0, Extent::record, directory);
}

Result<std::string> read_file(const std::string& path) { return read_path(path, 0); }

Result<std::string> read_link(const std::string& path) { return read_link_at(AT_FDCWD, path); }

Result<std::string> read_link_at(int directory, const std::string& path) {
  std::string target;
  for (size_t capacity = 256;; capacity *= 2) {
    ssize_t got = 0;
    target.resize_and_overwrite(capacity, [&](char* data, size_t size) {
      got = readlinkat(directory, path.c_str(), data, size);
      return got > 0 ? static_cast<size_t>(got) : 0;
    });
    if (got < 0) return fail_errno("readlink", path);
    if (static_cast<size_t>(got) < capacity) return target;
  }
}

Result<size_t> count_threads(pid_t pid) {
  const auto path = fmt::format("/proc/{}/task", pid);
  struct stat directory{};
  if (stat(path.c_str(), &directory) != 0) return fail(proc_error("stat", pid, path, errno));
  return directory.st_nlink < 2 ? 0 : directory.st_nlink - 2;
}

Result<std::vector<pid_t>> list_processes() { return list_numbers("/proc", 0); }

Result<std::vector<pid_t>> list_threads(pid_t pid) {
  auto threads = TRY(list_numbers(fmt::format("/proc/{}/task", pid), pid));
  const auto leader = std::find(threads.begin(), threads.end(), pid);
  if (leader != threads.end()) std::rotate(threads.begin(), leader, leader + 1);
  return threads;
}

Result<std::vector<pid_t>> list_children(pid_t pid) {
  std::vector<pid_t> children;
  for (const auto& child : TRY(list_children(pid, TRY(list_threads(pid))))) children.push_back(child.pid);
  return children;
}

Result<std::vector<Child>> list_children(pid_t pid, std::span<const pid_t> tids) {
  constexpr size_t many = 64;
  if (tids.size() >= many && has_children(pid, tids.size()) == false) return {};
  std::vector<Result<std::string>> texts(tids.size());
  (void)parallel_for(tids.size(), [&](size_t index) -> Status {
    texts[index] = read_path(fmt::format("/proc/{}/task/{}/children", pid, tids[index]), pid);
    return {};
  });
  std::vector<Child> children;
  for (size_t index = 0; index < tids.size(); ++index) {
    const pid_t tid = tids[index];
    const auto& text = texts[index];
    // A thread may end between the two looks; its children then belong to another thread and are seen next time.
    if (!text && (text.error().code() == ErrorCode::gone || text.error().errno_value() == ENOENT)) {
      if (tid == pid) {
        return fail(Error::system("open", ENOENT, fmt::format("/proc/{}/task/{}/children", pid, tid))
                        .advise("This kernel lacks CONFIG_PROC_CHILDREN, or the task has died"));
      }
      continue;
    }
    if (!text) return fail(text.error());
    TextCursor cursor(*text);
    while (const auto child = cursor.number<pid_t>()) children.push_back({*child, tid});
  }
  return children;
}

std::vector<pid_t> list_descendants(pid_t root) {
  std::vector<pid_t> found{root};
  for (size_t i = 0; i < found.size(); ++i) {
    if (const auto children = list_children(found[i])) found.insert(found.end(), children->begin(), children->end());
  }
  return found;
}

Result<std::vector<int>> list_descriptors(pid_t pid) {
  auto descriptors = TRY(list_numbers(fmt::format("/proc/{}/fd", pid), pid));
  std::sort(descriptors.begin(), descriptors.end());
  return descriptors;
}

}  // namespace stasis::kernel
