// Live snapshots: the memory of a stopped tree as it is in this instant, kept while the tree runs on.
//
// The agent makes a copy-on-write twin of each address space, by clone(2) in one of its threads. The twin is a child
// that wait(2) does not show without __WALL and of whose end no signal tells (exit signal 0); it shares the descriptors
// of its parent, so that its end closes nothing; it is ours from its birth (PTRACE_O_TRACECLONE), and born stopped. It
// lives for a moment only: as soon as its memory is held (memory/held_memory.h) we end it, and the agent reaps it
// before its own end. So the application never runs beside a child that it does not know.
//
// If stasis dies in that moment, the twin's first act is to end itself, and the agent goes on, reaps it, and leaves.
//
// What fork does not copy, or not for others to rely on, is copied into our memory: MADV_DONTFORK and MADV_WIPEONFORK;
// the vDSO, which shows the bootstrap stub meanwhile; and address spaces so small that a fork would take longer.
#pragma once

#include <memory>
#include <vector>

#include "base/diagnostics.h"
#include "capture/capture.h"
#include "capture/freezer.h"
#include "capture/walk.h"
#include "memory/held_memory.h"
#include "resource/address_space.h"

namespace stasis::capture {

/// An address space in a twin.
struct Twin {
  pid_t host_pid = 0;  ///< of a process that has it
  uint64_t start_time = 0;
  std::weak_ptr<memory::HeldMemory> memory;  ///< gone when it has been saved
  std::vector<model::PageRun> pages;
};

class TwinMaker {
 public:
  TwinMaker(std::vector<LiveProcess>& processes, resource::CaptureContext& context, resource::TreeMemory& memory,
            const AtPoint& at_point, Clock::time_point deadline)
      : processes_(processes), context_(context), memory_(memory), at_point_(at_point), deadline_(deadline) {}

  /// Keeps every address space that it can (resource::TreeMemory::keep); of the others the report says why not.
  /// `limit`: how much memory that may take.
  Result<SnapshotReport> make(uint64_t limit, uint64_t twin_from);
  std::vector<Twin> take_twins() { return std::move(twins_); }

 private:
  struct Space {
    ObjectId id;
    LiveProcess* process = nullptr;
    uint64_t size = 0;                 ///< of its own pages
    std::vector<AddressRange> beside;  ///< own pages that a twin would not have
    std::string obstacle;              ///< why it cannot be kept
  };
  std::vector<Space> find_spaces();
  std::string find_room(uint64_t bytes, uint64_t limit);
  std::string obstacle_to_twin(const Space&, uint64_t limit);
  Status copy_whole(std::span<Space> small);
  Status make_twin(Space&);
  Result<std::shared_ptr<memory::HeldMemory>> fork(Space&);
  Status try_to_read(const Space&, const memory::HeldMemory&) const;
  const model::AddressSpace& model_of(const Space& space) const {
    return context_.application.address_spaces.at(space.id);
  }

  std::vector<LiveProcess>& processes_;
  resource::CaptureContext& context_;
  resource::TreeMemory& memory_;
  const AtPoint& at_point_;
  Clock::time_point deadline_;
  SnapshotReport report_;
  std::vector<Twin> twins_;
};

}  // namespace stasis::capture
