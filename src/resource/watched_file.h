// Files that inotify and fanotify watch. The kernel watches inodes and shows their handles; what leads to them at a
// restore is a path.
#pragma once

#include <string>
#include <vector>

#include "image/file_records.h"
#include "kernel/fdinfo.h"
#include "kernel/mounts.h"
#include "model/application.h"
#include "resource/capture_context.h"

namespace stasis::resource {

struct WatchedFile {
  uint64_t inode = 0;
  uint32_t device = 0;  ///< the kernel's dev_t
  kernel::FileHandle handle;
  std::string path;  ///< absolute
};

/// A path that leads to the file: found by its handle, or else, with --force-irmap, by its inode in the directories
/// where watched files mostly are. Empty: there is none.
std::string find_watched(const CapturePolicy&, const std::vector<kernel::MountInfo>&, const WatchedFile&);
/// Says that a watched file has no path (any more) by which it could be watched again.
void refuse_lost_file(CaptureContext&, const std::string& subject, const WatchedFile&);
/// Says that events are queued which nobody has read, if there are any: the kernel gives them to one reader only.
void warn_of_events(CaptureContext&, const DescriptorProbe&);

void encode_handle(const WatchedFile&, fh_entry&);
/// Sets handle and path. The path is looked for by the handle if the record has none.
Status decode_handle(const fh_entry&, WatchedFile&, const std::string& where);
/// Whether it can be the path of a watched file: absolute, without NUL.
bool is_path(const std::string&);
/// Whether a path can be watched at a restore.
void validate_watched(const std::string& subject, const std::string& path, Diagnostics&);

/// The path as the process sees it, whose root directory may be another one by the time that it is used.
std::string seen_by(const model::Application&, Pid, const std::string& path);

}  // namespace stasis::resource
