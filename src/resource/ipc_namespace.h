// An IPC namespace of the tree's own (ipc_namespaces(7)): it comes and goes with the tree, so what is in it belongs to
// the tree, whether anybody has it open or not: segments, semaphores and message queues of System V, and the limits of
// them all (ipcns-*.img, as CRIU has them). What is attached or open is its rooms' (system_v.h, mqueue.h).
//
// A restore begins by moving stasis itself into a new namespace, where it makes everything, and where all are born. So
// what a failed restore has made goes with stasis.
//
// What SEM_UNDO would undo is looked at in the kernel's memory (semaphore_undo.h); where that cannot be read, nothing
// is undone after a restore: kcmp(2) tells whether a process has a list of it, but each that has created a thread has
// one, used or not (ipc/sem.c, copy_semundo). Nobody who sleeps in semop(2) goes on sleeping: the call returns EINTR,
// as after a stop and continue (signal(7)).
#pragma once

#include <functional>

#include "image/directory.h"
#include "resource/task_room.h"

namespace stasis::resource {

const TaskRoom& ipc_namespace_room();

/// Everything of the namespace is the tree's.
bool has_own_ipc_namespace(const model::Application&);

/// The root's namespace, if it is the tree's own, has this id in ipcns-*.img.
Status decode_ipc_namespace(const image::Directory&, uint32_t id, model::Application&);

/// Runs it where the process finds its System V objects: on a thread of its own if stasis does not live there.
Status in_ipc_namespace_of(pid_t pid, const std::function<Status()>& body);

}  // namespace stasis::resource
