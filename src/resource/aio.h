// Asynchronous I/O contexts (io_setup(2)): rings of events that have not been taken yet.
//
// A context is known by the address of its ring, which the kernel maps; the ring may be moved (fs/aio.c,
// aio_ring_mremap). Requests that are under way at the dump cannot be seen, and are lost: their buffers stay as they
// are, and no event ever tells of them.
#pragma once

#include "mm.pb.h"
#include "model/memory.h"
#include "base/result.h"

namespace stasis::resource {

/// The ring of a stopped task.
Result<model::AioContext> look_at_aio(pid_t witness, AddressRange ring);

void encode_aio(const model::AddressSpace&, mm_entry&);
/// Once all mappings are known.
Status decode_aio(const mm_entry&, const std::string& file, model::AddressSpace&);

}  // namespace stasis::resource
