// The records of one task, as its rooms fill and read them.
#pragma once

#include <vector>

#include "core.pb.h"
#include "fs.pb.h"
#include "ids.pb.h"
#include "image/directory.h"
#include "mm.pb.h"
#include "seccomp.pb.h"

namespace stasis::image {

struct TaskRecords {
  std::vector<core_entry> cores;     ///< one per thread, leader first: core-<tid>.img. A zombie has one
  mm_entry mm;                       ///< mm-<pid>.img; of the address space (written once per space)
  fs_entry fs;                       ///< fs-<pid>.img
  task_kobj_ids_entry ids;           ///< ids-<pid>.img
  seccomp_entry* seccomp = nullptr;  ///< seccomp.img of the whole tree: filters are shared by index
  const Directory* directory = nullptr;
};

}  // namespace stasis::image
