// Capture of memory: layout, mappings and pages of every address space of a stopped tree, and afterwards its bytes.
//
// All of it is read from outside (smaps, map_files, PAGEMAP_SCAN); what only the task can tell (brk, dumpable …) is
// asked by the memory room (resource/memory.h).
#pragma once

#include <sys/types.h>

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <tuple>

#include "memory/dirty_tracking.h"
#include "resource/capture_context.h"
#include "resource/codec.h"
#include "resource/memory_runs.h"

namespace stasis::resource {

/// The memory of a live, stopped tree. One for the whole tree; valid as long as its tasks are held.
class TreeMemory : public ApplicationMemory {
 public:
  TreeMemory();
  ~TreeMemory() override;

  /// Captures the address space `task.address_space` (an id chosen by the caller; kcmp says who shares one) into
  /// context.application. Does nothing if it has been captured through another task already. `ours`: what stasis has
  /// mapped into the task; it is left out. What cannot be restored goes to context.diagnostics.
  Status capture(CaptureContext&, const ProcessView&, const model::Task&, std::span<const AddressRange> ours = {});

  /// Looks for the pages of the tasks with these address spaces; none of them runs any more. It need not be known what
  /// is mapped: somebody else may be reading that, which takes as long.
  Status look_ahead(const std::map<ObjectId, pid_t>& witnesses);

  /// When all tasks are captured and none runs: finds the pages of each, and those that parent and child share
  /// copy-on-write.
  Status finish(CaptureContext&);

  // -- what has been written since the round before (memory/dirty_tracking.h)
  /// Before everything else: the trackers that are there. They must outlive this object.
  void track_by(const memory::Trackers& trackers) { trackers_ = &trackers; }
  /// After finish(): whose tracker it has; nullptr: none.
  const memory::Tracker* tracker_of(ObjectId address_space) const;
  /// Begins a round: what is written from now on will count as written.
  Status protect(const CaptureContext&, ObjectId address_space, const kernel::Userfaultfd&);

  // -- what stays when the tree runs on
  /// From here on the bytes of an address space come from `source`, whatever its processes do.
  void keep(ObjectId id, std::unique_ptr<memory::PageSource> source) { kept_[id] = std::move(source); }
  bool is_kept(ObjectId id) const override { return kept_.contains(id); }
  /// The tree runs on: what is not kept, and not read yet, cannot be read any more.
  void let_go();

  // -- bytes, from the live tasks. Those of an address space that is kept can be had once
  Result<std::unique_ptr<memory::PageSource>> address_space(ObjectId) override;
  Result<std::unique_ptr<memory::PageSource>> shared_memory(ObjectId) override;
  Result<std::vector<model::PageRun>> shared_memory_runs(const model::SharedMemory&) override;
  std::vector<AddressRange> unchanged(ObjectId) override;

 private:
  struct Segment;
  struct Tracked {
    const memory::Tracker* tracker = nullptr;
    std::vector<AddressRange> unchanged;
    std::optional<uint64_t> page;  ///< one under tracking
  };
  struct WriteProtected {
    ObjectId space;
    AddressRange range;
    std::string subject;
  };
  Status find_trackers(CaptureContext&);
  Result<OwnPages> own_pages(model::AddressSpace&) const;
  /// Shared memory that somebody has open (/proc/PID/map_files) is a file.
  bool is_open(const CaptureContext&, const kernel::MapsEntry&);
  Result<ObjectId> file_of(CaptureContext&, pid_t witness, const model::Task&, const kernel::MapsEntry&);
  Result<ObjectId> segment_of(CaptureContext&, pid_t witness, const kernel::MapsEntry&);

  std::map<ObjectId, pid_t> spaces_;  ///< a host pid that has it
  std::map<ObjectId, std::unique_ptr<memory::PageSource>> kept_;
  std::vector<ObjectId> without_pages_;
  std::map<ObjectId, std::vector<kernel::PageScan>> scans_;  ///< of look_ahead
  const memory::Trackers* trackers_ = nullptr;
  std::map<ObjectId, Tracked> tracked_;
  std::vector<WriteProtected> write_protected_;  ///< by somebody: by us?
  std::optional<std::set<std::pair<dev_t, ino_t>>> open_files_;
  std::map<ObjectId, std::unique_ptr<Segment>> segments_;
  /// By device, inode, open flags and path.
  std::map<std::tuple<uint32_t, uint32_t, uint64_t, uint32_t, std::string>, ObjectId> files_;
};

}  // namespace stasis::resource
