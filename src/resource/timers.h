#pragma once

#include <chrono>

#include <fmt/format.h>

#include "resource/task_room.h"

namespace stasis::resource {

const TaskRoom& timers_room();

/// When the queues of signals are known: a timer that has expired since it told what remained does not do so once more
/// after the restore. So much time has passed since it was asked, at most.
void forget_expired(std::chrono::nanoseconds passed, model::Task&);

}  // namespace stasis::resource
