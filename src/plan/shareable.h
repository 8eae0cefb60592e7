// What tasks can have in common by flags of clone(2).
#pragma once

#include <array>

#include "model/application.h"
#include "plan/command.h"

namespace stasis::plan {

struct Shareable {
  ObjectId model::Task::* object;
  bool Fork::* flag;
  const char* what;
  const char* between;  ///< why those who are between two that share it cannot have had it themselves
};
inline constexpr const char* own_is_shared = "those between them were born with another, which they share with others";
inline constexpr const char* left_by_execve = "those between them have left it, which takes execve and is not planned";
inline constexpr std::array shareable = {
    Shareable{&model::Task::descriptors, &Fork::share_files, "descriptor table", own_is_shared},
    Shareable{&model::Task::fs, &Fork::share_fs, "working directory", own_is_shared},
    Shareable{&model::Task::address_space, &Fork::share_memory, "memory", left_by_execve},
    Shareable{&model::Task::handlers, &Fork::share_handlers, "signal handlers", left_by_execve},
};

/// Their indices.
enum ShareableKind : size_t { files_kind, fs_kind, memory_kind, handlers_kind };

}  // namespace stasis::plan
