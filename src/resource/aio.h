// Asynchronous I/O contexts (io_setup(2)): rings of events that have not been taken yet.
//
// A context is known by the address of its ring, which the kernel maps; the ring may be moved (fs/aio.c,
// aio_ring_mremap). Requests that are under way cannot be made again: polls (IOCB_CMD_POLL) wait for others, those of
// files opened with O_DIRECT and fsyncs for a device. No interface tells of them: the ring tells of completions alone;
// how many places the kernel has left shows only when there is none; io_cancel(2) finds a request by its address, and
// ends it; io_destroy(2) waits for all, but does away with the context. The kernel's memory has the places that are
// left, and a dump waits until all are; where that cannot be read a warning says so.
#pragma once

#include "mm.pb.h"
#include "model/memory.h"
#include "base/result.h"
#include "kernel/kernel_memory.h"
#include "kernel/per_cpu.h"

namespace stasis::resource {

/// The ring of a stopped task.
Result<model::AioContext> look_at_aio(pid_t witness, AddressRange ring);

/// Whether the context with this ring, of a stopped task, has requests that have not completed. Only once it has none
/// the ring is what it will be.
Result<bool> is_under_way(const kernel::KernelMemory&, const kernel::PerCpu&, pid_t witness, uint64_t ring);

void encode_aio(const model::AddressSpace&, mm_entry&);
/// Once all mappings are known.
Status decode_aio(const mm_entry&, const std::string& file, model::AddressSpace&);

}  // namespace stasis::resource
