#pragma once

#include <fmt/format.h>

#include "resource/task_room.h"

namespace stasis::resource {

const TaskRoom& signals_room();

/// Reads the queues, when the task has answered. Its timers run on while it is stopped, and send their signals: one
/// that has expired by the time it is asked is in the queue and nowhere else.
Status capture_pending_signals(const ProcessView&, model::Task&);

}  // namespace stasis::resource
