// Open files of a stopped tree: descriptor tables, which descriptions they share, and files that are held without a
// descriptor (mapped files, executables, working and root directories).
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "image/file_records.h"
#include "plan/contributor.h"
#include "resource/capture_context.h"
#include "resource/task_room.h"

namespace stasis::resource {

/// A process together with the ids of its table and fs context, which the caller has found out by kcmp.
struct DescriptorHolder {
  const ProcessView* view = nullptr;
  model::Task* task = nullptr;
};

/// Fills application.descriptor_tables, .fs_contexts and .descriptions for all tasks: one call for the whole tree,
/// because descriptions are shared across it. What no room can save goes to context.diagnostics.
Status capture_descriptors(CaptureContext&, std::span<const DescriptorHolder>);

/// What of the descriptors only the task itself can tell.
const TaskRoom& descriptors_room();

/// A file that is held without a descriptor.
struct HeldFile {
  pid_t witness = 0;      ///< ProcessView::witness of the task
  std::string proc_path;  ///< opens it: "/proc/7/map_files/…", "/proc/7/exe"
  uint32_t flags = 0;     ///< what it is opened with at restore
  std::string subject;    ///< for diagnostics: "task 7 'nginx', executable"
};
/// The file behind a mapping, an executable or a directory link. The same file gives the same description.
Result<ObjectId> capture_file_at(CaptureContext&, HeldFile, const FileLink&);

/// fown_entry ↔ model
void encode_owner(const model::FileOwner&, fown_entry&);
model::FileOwner decode_owner(const fown_entry&);

/// CRIU keeps the path of a FIFO or terminal in a regular file entry beside its own: this is that entry's id.
constexpr uint32_t path_record_id(ObjectId description) { return description.value | 0x20000000; }
image::FileRecord path_record(const model::OpenDescription&, const std::string& path, uint32_t mode);

/// Those of the status flags that F_SETFL sets.
uint32_t settable_flags(uint32_t flags);
/// Flags for opening a file anew: what open(2) acts on only once is left out, and O_ASYNC, which it does not act on.
uint32_t reopen_flags(uint32_t flags);
/// The status flags that open(2) leaves out, if there are any.
void set_status_flags(const model::OpenDescription&, int fd, plan::Sink&);

}  // namespace stasis::resource
