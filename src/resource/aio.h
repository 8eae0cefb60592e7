// Asynchronous I/O contexts (io_setup(2)): rings of events that have not been taken yet.
//
// A context is known by the address of its ring, which the kernel maps; the ring may be moved (fs/aio.c,
// aio_ring_mremap). Requests that are under way cannot be made again. The ring tells of completions alone; how many
// places the kernel has left shows only when there is none; io_cancel(2) finds a request by its address, and ends it;
// io_destroy(2) waits for all, but does away with the context; fs.aio-nr counts contexts. Reads and writes of files
// that are not opened with O_DIRECT are carried out by io_submit itself, and those that are end while the task stands
// still: what remains is what waits for others (IOCB_CMD_POLL). Those are listed in the kernel's memory, and a dump
// waits for them; where that cannot be read they are lost: no event ever tells of them.
#pragma once

#include "mm.pb.h"
#include "model/memory.h"
#include "base/result.h"
#include "kernel/kernel_memory.h"

namespace stasis::resource {

/// The ring of a stopped task.
Result<model::AioContext> look_at_aio(pid_t witness, AddressRange ring);

/// Whether requests of the context with this ring wait for others, and can be cancelled: IOCB_CMD_POLL.
Result<bool> waits_for_aio(const kernel::KernelMemory&, pid_t witness, uint64_t ring);

void encode_aio(const model::AddressSpace&, mm_entry&);
/// Once all mappings are known.
Status decode_aio(const mm_entry&, const std::string& file, model::AddressSpace&);

}  // namespace stasis::resource
