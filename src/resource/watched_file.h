// Files that inotify and fanotify watch. The kernel watches inodes and shows their handles; what leads to them at a
// restore is a path.
#pragma once

#include <algorithm>
#include <memory>
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
  std::string path;  ///< absolute; empty: it has no name any more
  ObjectId ghost;    ///< then: the GhostFile, which whoever has the watch has open
};

bool is_same(const WatchedFile&, const WatchedFile&);
/// For people.
std::string name_of(const WatchedFile&);

/// A path that leads to the file: found by its handle, or else, with --force-irmap, by its inode in the directories
/// where watched files mostly are. Empty: there is none.
std::string find_watched(const CapturePolicy&, const std::vector<kernel::MountInfo>&, const WatchedFile&);
/// When all open files are known: the unlinked one that a watch without a path is on, if each process that has the
/// watcher has that file open. Otherwise the watch is refused.
void find_ghost(CaptureContext&, const model::OpenDescription& watcher, WatchedFile&);
/// Says that events are queued which nobody has read, if there are any: the kernel gives them to one reader only.
void warn_of_events(CaptureContext&, const DescriptorProbe&);

void encode_handle(const WatchedFile&, fh_entry&);
/// Sets handle and path, or ghost. The path is looked for by the handle if the record has neither.
Status decode_handle(const fh_entry&, WatchedFile&, const std::string& where);
/// Whether it can be the path of a watched file: absolute, without NUL.
bool is_path(const std::string&);
/// When all open files are known: whether the ghost can be reached by those who have the watcher.
Status check_ghost(const model::Application&, const model::OpenDescription& watcher, const WatchedFile&);
/// Whether the file can be watched at a restore.
void validate_watched(const std::string& subject, const WatchedFile&, Diagnostics&);

/// What leads the process to the file: its path (that of the file itself, symbolic link or not), as it is seen from the
/// root directory that the process has by then; or the link in /proc of a descriptor.
struct Lead {
  std::string path;
  bool is_link = false;
};
Lead lead_to(const model::Application&, Pid, const WatchedFile&);

/// For all watchers of a kind, whose state has `watched()`: things with a `file`.
template <typename State>
void find_ghosts(CaptureContext& context) {
  for (auto& [id, description] : context.application.descriptions) {
    const auto* state = description.state.template as<State>();
    const auto is_lost = [](const auto& one) { return one.file.path.empty(); };
    if (state == nullptr || std::ranges::none_of(state->watched(), is_lost)) continue;
    auto found = std::make_shared<State>(*state);
    for (auto& one : found->watched()) {
      if (is_lost(one)) find_ghost(context, description, one.file);
    }
    description.state = {std::move(found)};
  }
}
template <typename State>
Status check_ghosts(const model::Application& application) {
  for (const auto& [id, description] : application.descriptions) {
    const auto* state = description.state.template as<State>();
    if (state == nullptr) continue;
    for (const auto& one : state->watched()) TRY(check_ghost(application, description, one.file));
  }
  return {};
}

}  // namespace stasis::resource
