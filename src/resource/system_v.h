// Shared memory of System V (shmget(2)) that tasks have attached.
//
// Segments are the IPC namespace's, not the tree's: one stays on the system when everybody who had attached it is gone,
// unless it has been destroyed (IPC_RMID) before. So at a restore it is either there or made again, with the same id
// (kernel.shm_next_id) and key:
// - it is there, the same, and nobody uses it: it gets the content that it had at the dump;
// - it is there, the same, and others use it: it is attached with what is in it by now, as a file would be opened;
// - another one has its id or its key: refused.
// Who has created it is stasis then; its owner, which permissions go by as well (ipc/util.c, ipcperms), is as before.
// Segments that nobody has attached, semaphores and message queues cannot be told apart from those of others: they stay
// on the system. Where the tree has an IPC namespace of its own (ipc_namespace.h), everything in it is made again.
#pragma once

#include "model/memory.h"
#include "namespaces.pb.h"
#include "resource/task_room.h"

namespace stasis::resource {

/// What IPC_STAT says.
Result<model::SystemVSegment> look_at_segment(int id);

void encode_system_v(const model::SystemVSegment&, ipc_shm_entry&);
/// What objects of all kinds have in common. The owner stands for the creator, whom nobody can choose.
ipc_desc_entry describe_ipc(int32_t id, int32_t key, uint32_t uid, uint32_t gid, uint32_t mode);
/// `where` is the record that it is a field of.
Result<model::SystemVSegment> decode_system_v(const ipc_shm_entry&, const std::string& where);

/// Of a variable such as "kernel/shmmax".
std::string sysctl_path(const std::string& variable);
/// Calls that set it.
void write_variable(const std::string& variable, const std::string& value, plan::Calls&);
/// Commands of stasis itself that make the segment.
void create_segment(const model::SystemVSegment&, plan::Sink&);

const TaskRoom& system_v_room();

}  // namespace stasis::resource
