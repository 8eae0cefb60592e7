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

/// A descriptor in the table that opens the ghost; -1: there is none.
int descriptor_of(const model::Application& application, const model::DescriptorTable& table, ObjectId ghost) {
  for (const auto& [number, slot] : table.slots) {
    const auto* file = application.descriptions.at(slot.description).state.as<RegularFile>();
    if (file != nullptr && file->ghost == ghost) return number;
  }
  return -1;
}

/// Whether everybody who has the watcher has the ghost open.
bool is_within_reach(const model::Application& application, ObjectId watcher, ObjectId ghost) {
  bool somebody = false;
  for (const auto& [id, table] : application.descriptor_tables) {
    const bool has_watcher =
        std::ranges::any_of(table.slots, [&](const auto& slot) { return slot.second.description == watcher; });
    if (has_watcher && descriptor_of(application, table, ghost) < 0) return false;
    somebody |= has_watcher;
  }
  return somebody;
}

/// The path as the process sees it, whose root directory may be another one by the time that it is used.
std::string seen_by(const model::Application& application, Pid pid, const std::string& path) {
  const auto& fs = application.fs_contexts.at(application.find(pid)->fs);
  const auto root = application.descriptions.find(fs.root_directory);
  const std::string top = root == application.descriptions.end() ? "/" : path_of(root->second);
  const bool is_below = top.size() > 1 && path.starts_with(top) && path.size() > top.size() && path[top.size()] == '/';
  if (path == top) return "/";
  return is_below ? path.substr(top.size()) : path;
}

}  // namespace

bool is_same(const WatchedFile& a, const WatchedFile& b) {
  return a.path == b.path && (a.ghost.value != 0) == (b.ghost.value != 0);
}

std::string name_of(const WatchedFile& file) {
  return file.ghost.value != 0 ? fmt::format("the unlinked file {}", ghost_number(file.ghost)) : file.path;
}

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

void find_ghost(CaptureContext& context, const model::OpenDescription& watcher, WatchedFile& file) {
  // No name: it is in the ghosts' table by the device number that stat(2) gives.
  file.ghost = ghost_of(context, makedev(file.device >> 20, file.device & 0xfffff), file.inode);
  if (file.ghost.value != 0 && is_within_reach(context.application, watcher.id, file.ghost)) return;
  context.diagnostics.refuse(
      watcher.state.value->describe(),
      fmt::format("no name leads to a file it watches (inode {} of device {}:{})", file.inode, file.device >> 20,
                  file.device & 0xfffff),
      "if it has a name, its file system has no handles: pass --force-irmap, and --irmap-scan-path with a directory "
      "above it; otherwise have the watch removed, or the file open in the process that watches it");
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
  if (file.ghost.value != 0)
    entry.set_ghost_id(ghost_number(file.ghost));
  else
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
  if (entry.has_ghost_id()) {
    file.ghost = ghost_numbered(entry.ghost_id());
    return {};
  }
  file.path = entry.path();
  if (file.path.empty())
    file.path = kernel::find_by_handle(TRY(kernel::read_mountinfo()), file.device, file.inode, file.handle);
  if (!is_path(file.path))
    return fail(Error::invalid("decode watched file", "there is no path in the record, and none is found by its handle",
                               where + ".path"));
  return {};
}

Status check_ghost(const model::Application& application, const model::OpenDescription& watcher,
                   const WatchedFile& file) {
  if (file.ghost.value == 0 || is_within_reach(application, watcher.id, file.ghost)) return {};
  return fail(Error::invalid("decode watched file", "whoever watches the unlinked file does not have it open",
                             fmt::format("files.img, file {}, field f_handle.ghost_id", watcher.id)));
}

void validate_watched(const std::string& subject, const WatchedFile& file, Diagnostics& diagnostics) {
  struct stat about{};
  if (file.ghost.value == 0 && lstat(file.path.c_str(), &about) != 0)
    diagnostics.refuse(subject, fmt::format("{}, which it watches, does not exist", file.path), "put it back");
}

Lead lead_to(const model::Application& application, Pid pid, const WatchedFile& file) {
  if (file.ghost.value == 0) return {seen_by(application, pid, file.path)};
  const auto& table = application.descriptor_tables.at(application.find(pid)->descriptors);
  return {fmt::format("/proc/self/fd/{}", descriptor_of(application, table, file.ghost)), true};
}

}  // namespace stasis::resource
