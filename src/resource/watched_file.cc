#include "resource/watched_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "resource/regular_file.h"

namespace stasis::resource {
namespace {

constexpr int words_of_handle = 16;  ///< CRIU wants so many, used or not

/// Where to look for watched files that have no handles.
constexpr const char* usual_places[] = {"/etc", "/run", "/var", "/usr", "/lib", "/tmp", "/home"};
constexpr unsigned most_files = 1'000'000;  ///< of one directory tree that are looked at

/// The file itself, or one below it.
std::string find_below(const std::string& top, const WatchedFile& file) {
  const auto leads_to_it = [&](const std::string& path) {
    struct stat about{};
    return lstat(path.c_str(), &about) == 0 && about.st_ino == file.inode &&
           kernel::kernel_device(major(about.st_dev), minor(about.st_dev)) == file.device;
  };
  if (leads_to_it(top)) return top;
  std::error_code unreadable;
  using Walk = std::filesystem::recursive_directory_iterator;
  unsigned count = 0;
  for (Walk at(top, std::filesystem::directory_options::skip_permission_denied, unreadable), end;
       at != end && !unreadable && count < most_files; at.increment(unreadable), ++count) {
    if (leads_to_it(at->path().string())) return at->path().string();
  }
  return {};
}

}  // namespace

std::string find_watched(const CapturePolicy& policy, const std::vector<kernel::MountInfo>& mounts,
                         const WatchedFile& file) {
  auto path = kernel::find_by_handle(mounts, file.device, file.inode, file.handle);
  if (!path.empty() || !policy.force_irmap) return path;
  auto places = policy.irmap_scan;
  places.insert(places.end(), std::begin(usual_places), std::end(usual_places));
  for (const auto& place : places) {
    path = find_below(place, file);
    if (!path.empty()) return path;
  }
  return path;
}

void refuse_lost_file(CaptureContext& context, const std::string& subject, const WatchedFile& file) {
  context.diagnostics.refuse(
      subject,
      fmt::format("no name leads to a file it watches (inode {} of device {}:{})", file.inode, file.device >> 20,
                  file.device & 0xfffff),
      "if it has a name, its file system has no handles: pass --force-irmap, and --irmap-scan-path with a directory "
      "above it; otherwise have the watch removed");
}

void warn_of_events(CaptureContext& context, const DescriptorProbe& probe) {
  const auto duplicate = probe.duplicate();
  int bytes = 0;
  if (!duplicate || ioctl(*duplicate, FIONREAD, &bytes) != 0 || bytes == 0) return;
  context.diagnostics.warn(probe.subject, fmt::format("{} bytes of events are queued that nobody has read", bytes),
                           "a restored program will not see these events");
}

void encode_handle(const WatchedFile& file, fh_entry& entry) {
  entry.set_bytes(static_cast<uint32_t>(file.handle.bytes.size()));
  entry.set_type(file.handle.type);
  for (int word = 0; word < words_of_handle; ++word) {
    uint64_t value = 0;
    const size_t at = static_cast<size_t>(word) * sizeof value;
    if (at < file.handle.bytes.size())
      std::memcpy(&value, file.handle.bytes.data() + at, std::min(sizeof value, file.handle.bytes.size() - at));
    entry.add_handle(value);
  }
  entry.set_path(file.path);
}

bool is_path(const std::string& path) {
  return path.starts_with('/') && path.find('\0') == std::string::npos && path.size() < PATH_MAX;
}

Status decode_handle(const fh_entry& entry, WatchedFile& file, const std::string& where) {
  if (entry.bytes() > static_cast<size_t>(entry.handle_size()) * sizeof(uint64_t) || entry.bytes() > MAX_HANDLE_SZ)
    return fail(Error::invalid("decode watched file", "the handle is shorter than it says", where + ".bytes"));
  file.handle.type = entry.type();
  for (const uint64_t word : entry.handle()) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(&word);
    file.handle.bytes.insert(file.handle.bytes.end(), bytes, bytes + sizeof word);
  }
  file.handle.bytes.resize(entry.bytes());
  file.path = entry.path();
  if (file.path.empty())
    file.path = kernel::find_by_handle(TRY(kernel::read_mountinfo()), file.device, file.inode, file.handle);
  if (!is_path(file.path))
    return fail(Error::invalid("decode watched file", "there is no path in the record, and none is found by its handle",
                               where + ".path"));
  return {};
}

void validate_watched(const std::string& subject, const std::string& path, Diagnostics& diagnostics) {
  struct stat about{};
  if (lstat(path.c_str(), &about) != 0)
    diagnostics.refuse(subject, fmt::format("{}, which it watches, does not exist", path), "put it back");
}

std::string seen_by(const model::Application& application, Pid pid, const std::string& path) {
  const auto& fs = application.fs_contexts.at(application.find(pid)->fs);
  const auto root = application.descriptions.find(fs.root_directory);
  const std::string top = root == application.descriptions.end() ? "/" : path_of(root->second);
  const bool is_below = top.size() > 1 && path.starts_with(top) && path.size() > top.size() && path[top.size()] == '/';
  if (path == top) return "/";
  return is_below ? path.substr(top.size()) : path;
}

}  // namespace stasis::resource
