// POSIX message queues (mq_overview(7)).
//
// A queue is a file of a file system of the IPC namespace's own, which need not be mounted anywhere. One that has a
// name outlives the tree: at a restore it is either there, unchanged (what it is, and how many messages it holds), and
// opened; or changed, and refused; or gone, and made again with its messages. One that is unlinked is always made
// again.
//
// Nobody can look at messages but by receiving them: they are received and sent again, in the same order, while all who
// could do so are stopped; hence not if a process outside of the tree has the queue open. A process of its own does it,
// which goes on if stasis is killed.
//
// Of a notification (mq_notify(3)) the kernel shows everything but its value (sigev_value): it is 0 after a restore.
// It ends when its process closes any descriptor of the queue, so it is set last.
#pragma once

#include "resource/file_room.h"
#include "resource/task_room.h"

namespace stasis::resource {

const FileRoom& mqueue_room();
/// Notifications belong to a process.
const TaskRoom& mqueue_notifications_room();

}  // namespace stasis::resource
