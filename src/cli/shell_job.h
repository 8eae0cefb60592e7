// Waiting for a restored tree, as the job of a shell that it may be.
#pragma once

#include <sys/types.h>

namespace stasis::cli {

/// Until the root has ended.
void wait_for_root(pid_t root);

/// The same for a tree in a process group of its own, of which the shell knows nothing: its job is stasis. So stasis
/// stops when the root has stopped (^Z, or a read from the terminal in the background), and what the shell does to go
/// on with its job (fg, bg: tcsetpgrp(3) and SIGCONT) is passed on, as are the terminal's keys that reach stasis.
void wait_for_job(pid_t root);

}  // namespace stasis::cli
