// A round of tracking: the tree is stopped, what has been written since the round before is found, and all of it is
// write-protected anew. That is all that a pre-dump stops the tree for; its pages are copied while it runs.
#pragma once

#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/diagnostics.h"
#include "base/result.h"
#include "capture/capture.h"
#include "capture/walk.h"
#include "memory/dirty_tracking.h"

namespace stasis::capture {

/// One address space in a round.
struct RoundSpace {
  ObjectId id;
  std::string suffix;  ///< of its pagemap
  const memory::Tracker* tracker = nullptr;
  /// Protects it by its tracker, which is there now.
  std::function<Status(const kernel::Userfaultfd&)> protect;
};
/// For a tree that is stopped: gives a tracker to each address space that has none, protects them all, and leaves in
/// `trackers` those in use.
Status begin_round(std::vector<LiveProcess>&, const model::Application&, const std::vector<RoundSpace>&,
                   memory::Trackers& trackers, const AtPoint&, Clock::time_point deadline);

struct RoundOptions {
  pid_t root_pid = 0;             ///< as we see it
  unsigned timeout_seconds = 10;  ///< for stopping the tree; 0: none
  AtPoint at_point;               ///< as CaptureOptions::at_point
  /// Called while the tree stands, before the first page is protected.
  std::function<Status()> before_protecting;
};
/// What a round found out about an address space.
struct RoundMemory {
  std::string suffix;
  pid_t witness = 0;  ///< through whom it is reached
  std::vector<memory::Trackable> mappings;
  std::vector<model::PageRun> runs;     ///< own pages
  std::vector<AddressRange> unchanged;  ///< since the round before
};
/// Fills in what is there now, all but suffix and witness; the task may run. The answer is one of the pages that are
/// under tracking, if there are any. /proc/PID/maps says enough: smaps would look at every page once more.
Result<std::optional<uint64_t>> look_at(RoundMemory&);

struct Round {
  std::vector<RoundMemory> memories;
  CaptureTimes times;
  Diagnostics diagnostics;  ///< if it refuses, no round has begun
};
/// Stops the tree for one round. `trackers`: of the round before, and afterwards of this one.
Result<Round> hold_round(const RoundOptions&, memory::Trackers& trackers);

}  // namespace stasis::capture
