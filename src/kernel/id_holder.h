// Who keeps an id from being given to a new process.
#pragma once

#include <sys/types.h>

#include <string>

namespace stasis::kernel {

/// An id is free when nobody has it as a process, a thread, a process group or a session (kernel/pid.c): who has, in
/// words, as far as our own /proc shows it.
std::string holder_of_id(pid_t id);

}  // namespace stasis::kernel
