// Application ↔ directory of images, by asking every room.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "base/result.h"
#include "image/directory.h"
#include "memory/increments.h"
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
  /// Whether the bytes of an address space stay as they are when its processes run on.
  virtual bool is_kept(ObjectId) const { return false; }
  /// Which pages of a segment may hold anything but zeros (addresses are offsets), ascending.
  virtual Result<std::vector<model::PageRun>> shared_memory_runs(const model::SharedMemory& segment) {
    if (segment.size == 0) return std::vector<model::PageRun>{};
    return std::vector<model::PageRun>{{.range = {0, segment.size}, .shared_with_parent = false}};
  }
  /// Pages of an address space that are as the parent images hold them.
  virtual std::vector<AddressRange> unchanged(ObjectId) { return {}; }
};

struct EncodeStats {
  uint64_t pages_scanned = 0, pages_written = 0;                ///< of private memory
  uint64_t shared_pages_scanned = 0, shared_pages_written = 0;  ///< of shared memory and memfds
  uint64_t pages_in_parent = 0, shared_pages_in_parent = 0;     ///< not written: the parent images hold them
  uint64_t pages_left_out = 0;                                  ///< not written: EncodeOptions::left_out
  uint64_t zero_pages_skipped = 0;
};
struct EncodeOptions {
  std::function<void(uint64_t done, uint64_t total)> progress;
  memory::ParentImages* parent = nullptr;  ///< what the directory's link of this name leads to, if it has one
  /// What is left when this is called (with what has been done by then) no longer needs the tree to stand still.
  std::function<Status(const EncodeStats&)> only_kept_memory_is_left;
  /// Pages of address spaces that are not stored, but said to come later; ascending.
  std::map<ObjectId, std::vector<AddressRange>> left_out;
};
/// Writes every image but the inventory, which makes the checkpoint valid and is the caller's last act.
Result<EncodeStats> encode(const model::Application&, ApplicationMemory&, const image::Directory&,
                           const EncodeOptions& = {});
struct Decoded {
  model::Application application;
  std::map<ObjectId, std::vector<plan::PageLocation>> pages;  ///< of address spaces and shared segments: where they lie
};
/// Every value is checked: ids in range and unique, parents that exist and form one tree, objects that are there.
/// What is rejected is named by file and field.
Result<Decoded> decode(const image::Directory&);

/// The task whose mm-<pid>.img and pagemap-<pid>.img stand for an address space: the first that has it.
std::map<ObjectId, Pid> address_space_owners(const model::Application&);

}  // namespace stasis::resource
