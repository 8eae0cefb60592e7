// Application ↔ directory of images, by asking every room.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "base/result.h"
#include "image/directory.h"
#include "memory/pages.h"
#include "model/application.h"
#include "plan/planner.h"

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

/// Makes the checkpoint valid: writes inventory.img (image::Directory::commit).
Status commit(const model::Application&, const image::Directory&);

/// Where the pages of every address space and shared segment lie, for the planner.
Result<std::map<ObjectId, std::vector<plan::PageLocation>>> locate_pages(const model::Application&, const image::Directory&);

}  // namespace stasis::resource
