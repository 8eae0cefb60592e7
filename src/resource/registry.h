// The list of rooms. Adding a kind adds one line to registry.cc; order is the order of asking and of contributing.
#pragma once

#include <span>
#include <vector>

#include "plan/contributor.h"
#include "resource/file_room.h"
#include "resource/task_room.h"

namespace stasis::resource {

std::span<const TaskRoom* const> task_rooms();
std::span<const FileRoom* const> file_rooms();
/// Those of which the application has any, in registry order. Asking all of them about thousands of files takes long.
std::vector<const FileRoom*> file_rooms_in_use(const model::Application&);
/// The room of a kind; nullptr if there is none.
const FileRoom* file_room(std::string_view kind);
/// All rooms as the planner sees them.
plan::Contributors contributors();

}  // namespace stasis::resource
