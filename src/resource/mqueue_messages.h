// The messages of a POSIX message queue.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "base/types.h"

namespace stasis::resource {

struct QueueMessage {
  uint32_t priority = 0;
  Bytes data;
  friend bool operator==(const QueueMessage&, const QueueMessage&) = default;
};

/// What the queue behind `fd` (open for both, not blocking) holds, in the order of receiving. It is left as it was.
Result<std::vector<QueueMessage>> read_messages(int fd, uint64_t count, uint64_t message_size);

}  // namespace stasis::resource
