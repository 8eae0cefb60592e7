#pragma once

#include <fmt/format.h>

#include "resource/task_room.h"

namespace stasis::resource {

const TaskRoom& credentials_room();
/// The permitted and effective capability sets: contributes after everything that still needs capabilities.
const TaskRoom& final_capabilities_room();

/// Whether the thread has the credentials of stasis itself: it gets them by being forked, and nothing changes them.
bool has_inherited_credentials(const model::Thread&);

}  // namespace stasis::resource
