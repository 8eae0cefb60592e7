// Memory that is written to without page tables: by a device, or by the kernel on its behalf, for as long as it is
// pinned (Documentation/core-api/pin_user_pages.rst). Write protection does not see that.
//
// Pages are pinned for long where buffers are registered (io_uring, RDMA), which VmPin counts, and for as long as a
// request of direct I/O takes. To be pinned they are made writable first, which counts as a write: so only pages that
// are protected while they are pinned can change unseen.
#pragma once

#include <sys/types.h>

#include "base/result.h"

namespace stasis::resource {

/// Whether pages of a stopped task may be pinned. A moment is given to requests that are under way to complete.
Result<bool> may_be_pinned(pid_t witness);

}  // namespace stasis::resource
