// mm_entry ↔ model::AddressSpace.
#pragma once

#include <string>

#include "base/result.h"
#include "mm.pb.h"
#include "model/application.h"

namespace stasis::resource {

/// Everything but what the room of process attributes writes (dumpable, thp_disabled, merge_any).
Status encode_memory(const model::Application&, const model::AddressSpace&, mm_entry&);
/// Every value is checked; `file` is for messages. Segments are added to application.shared_memories.
Status decode_memory(const mm_entry&, const std::string& file, model::Application&, model::AddressSpace&);

}  // namespace stasis::resource
