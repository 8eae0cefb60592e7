// task_core_entry.task_state. (crit's names for these numbers are wrong; these are what CRIU writes and reads.)
#pragma once

#include <cstdint>
#include <optional>

#include "model/task.h"

namespace stasis::resource {

enum class TaskStateRecord : uint32_t { alive = 1, dead = 2, stopped = 3 };

constexpr TaskStateRecord record_of(model::TaskState state) {
  switch (state) {
    case model::TaskState::running:
      return TaskStateRecord::alive;
    case model::TaskState::stopped:
      return TaskStateRecord::stopped;
    case model::TaskState::zombie:
      break;
  }
  return TaskStateRecord::dead;
}

constexpr std::optional<model::TaskState> state_of(uint32_t record) {
  switch (static_cast<TaskStateRecord>(record)) {
    case TaskStateRecord::alive:
      return model::TaskState::running;
    case TaskStateRecord::stopped:
      return model::TaskState::stopped;
    case TaskStateRecord::dead:
      return model::TaskState::zombie;
  }
  return std::nullopt;
}

}  // namespace stasis::resource
