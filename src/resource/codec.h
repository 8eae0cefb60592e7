// Application ↔ directory of images, by asking every room.
#pragma once

#include <functional>
#include <memory>

#include "base/result.h"
#include "image/directory.h"
#include "memory/pages.h"
#include "model/application.h"

namespace stasis::resource {

/// The bytes of the address spaces and segments of an Application.
class ApplicationMemory {
 public:
  virtual ~ApplicationMemory() = default;
  virtual Result<std::unique_ptr<memory::PageSource>> address_space(ObjectId) = 0;
  virtual Result<std::unique_ptr<memory::PageSource>> shared_memory(ObjectId) = 0;
};

struct EncodeStats {
  uint64_t pages_scanned = 0, pages_written = 0, zero_pages_skipped = 0;
};
/// Writes every image but the inventory, which makes the checkpoint valid and is the caller's last act.
Result<EncodeStats> encode(const model::Application&, ApplicationMemory&, const image::Directory&,
                           const std::function<void(uint64_t done, uint64_t total)>& progress = {});
Result<model::Application> decode(const image::Directory&);

}  // namespace stasis::resource
