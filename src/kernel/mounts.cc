#include "kernel/mounts.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cstring>

#include "base/unique_fd.h"
#include "kernel/proc.h"
#include "kernel/text.h"

namespace stasis::kernel {
namespace {

/// Blanks and the like are written as \ooo (fs/proc_namespace.c, mangle).
std::string unescaped(std::string_view text) {
  std::string plain;
  for (size_t at = 0; at < text.size(); ++at) {
    const auto code = text[at] == '\\' ? to_number<uint8_t>(text.substr(at + 1, 3), 8) : std::nullopt;
    plain += code ? static_cast<char>(*code) : text[at];
    if (code) at += 3;
  }
  return plain;
}

/// Whether the name leads to that very inode.
bool leads_to(const std::string& path, uint32_t device, uint64_t inode) {
  struct statx about{};
  return statx(AT_FDCWD, path.c_str(), AT_SYMLINK_NOFOLLOW, STATX_INO, &about) == 0 && about.stx_ino == inode &&
         kernel_device(about.stx_dev_major, about.stx_dev_minor) == device;
}

}  // namespace

Result<std::vector<MountInfo>> parse_mountinfo(std::string_view text) {
  std::vector<MountInfo> mounts;
  TextCursor lines(text);
  while (!lines.done()) {
    TextCursor line(lines.line());
    MountInfo mount;
    const auto id = line.number<int>();
    line.word();  // the mount above
    const auto device_major = line.number<uint32_t>();
    line.skip(1);
    const auto device_minor = line.number<uint32_t>();
    mount.root = unescaped(line.word());
    mount.point = unescaped(line.word());
    for (auto tag = line.word(); !tag.empty() && tag != "-";) tag = line.word();  // options of the mount, its peers
    mount.type = line.word();
    line.word();  // what is mounted
    mount.options = line.word();
    if (!id || !device_major || !device_minor || mount.point.empty())
      return fail(Error::invalid("parse mountinfo", fmt::format("line {} is malformed", mounts.size() + 1)));
    mount.id = *id, mount.device_major = *device_major, mount.device_minor = *device_minor;
    mounts.push_back(std::move(mount));
  }
  return mounts;
}

Result<std::vector<MountInfo>> read_mountinfo() { return parse_mountinfo(TRY(read_file("/proc/self/mountinfo"))); }

std::string find_by_handle(const std::vector<MountInfo>& mounts, uint32_t device, uint64_t inode,
                           const FileHandle& handle) {
  if (handle.bytes.empty() || handle.bytes.size() > MAX_HANDLE_SZ) return {};
  alignas(file_handle) char storage[sizeof(file_handle) + MAX_HANDLE_SZ];
  auto* raw = reinterpret_cast<file_handle*>(storage);
  for (const auto& mount : mounts) {
    if (kernel_device(mount.device_major, mount.device_minor) != device) continue;
    const UniqueFd root(open(mount.point.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
    if (!root.valid()) continue;
    raw->handle_bytes = static_cast<unsigned>(handle.bytes.size());
    raw->handle_type = static_cast<int>(handle.type);
    std::memcpy(raw->f_handle, handle.bytes.data(), handle.bytes.size());
    const UniqueFd file(open_by_handle_at(root.get(), raw, O_PATH | O_CLOEXEC | O_NOFOLLOW));
    if (!file.valid()) continue;
    const auto path = read_link(fmt::format("/proc/self/fd/{}", file.get()));
    if (path && leads_to(*path, device, inode)) return *path;
  }
  return {};
}

}  // namespace stasis::kernel
