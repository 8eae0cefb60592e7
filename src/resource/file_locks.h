// Locks and leases of files: posix (F_SETLK), flock(2), of open files (F_OFD_SETLK), leases (F_SETLEASE).
//
// Kernel rules (fs/locks.c) that this is built on:
// - A posix lock belongs to a descriptor table; it goes with the first descriptor of that *file* that is closed in it,
//   whichever that is. So it is taken last, by the process that held it, when nothing is closed any more.
// - The others belong to an open file description, and so to everybody who has inherited it.
// - Whoever opens a leased file in the wrong way breaks the lease: leases come when everybody has opened everything.
//
// Nothing happens to locks while a tree is dumped and killed: they vanish with it, and others may take them. A lock
// that somebody else has at the restore is refused before anything is created.
#pragma once

#include <string>

#include "image/directory.h"
#include "resource/capture_context.h"
#include "resource/task_room.h"

namespace stasis::resource {

/// What fdinfo of one descriptor says.
struct LockedDescriptor {
  const std::string& subject;
  const std::string& info;
  ObjectId description;
  bool is_first = false;                    ///< of this description
  model::DescriptorTable* table = nullptr;  ///< none: in flight
};
/// Adds the locks to table and description. What cannot be saved goes to context.diagnostics.
Status capture_locks(CaptureContext&, const LockedDescriptor&);

/// filelocks.img, which exists where there are locks.
Status encode_locks(const model::Application&, const image::Directory&);
/// Once all descriptor tables are known.
Status decode_locks(const image::Directory&, model::Application&);

/// Says before a restore which locks somebody else has.
const TaskRoom& file_locks_room();

}  // namespace stasis::resource
