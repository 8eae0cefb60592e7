// Who keeps an id from being given to a new process, and which nobody does.
#pragma once

#include <sys/types.h>

#include <string>

namespace stasis::kernel {

/// An id is free when nobody has it as a process, a thread, a process group or a session (kernel/pid.c): who has, in
/// words, as far as our own /proc shows it.
std::string holder_of_id(pid_t id);

/// The first of so many ids in a row that nobody has and nobody is about to get: the kernel hands them out in a circle,
/// so that the far half of it is quiet. It has many places to begin at: whoever looks at the same time as others
/// chooses one of his own. 0: there are none.
pid_t quiet_ids(pid_t count, unsigned place);

}  // namespace stasis::kernel
