// kernel → Application: seize a tree, look at it from outside, ask it from inside, and let it go unharmed.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/diagnostics.h"
#include "base/result.h"
#include "memory/dirty_tracking.h"
#include "model/application.h"
#include "resource/capture_context.h"
#include "resource/codec.h"
#include "resource/network_facts.h"

namespace stasis::capture {

struct CaptureOptions {
  resource::CapturePolicy policy;
  resource::NetworkPolicy network;
  pid_t root_pid = 0;             ///< as we see it
  unsigned timeout_seconds = 10;  ///< for stopping the tree; 0: none
  /// Named points of a dump, for fault injection by tests (STASIS_FAULT): called with the name as each is passed.
  std::function<void(std::string_view point)> at_point;
  /// What has tracked the tree's memory since the round before (memory/dirty_tracking.h); nullptr: nobody has.
  const memory::Trackers* trackers = nullptr;
};

enum class AfterDump { let_run, leave_stopped, kill };

struct CaptureTimes {
  uint64_t freezing_us = 0;
  uint64_t frozen_us = 0;  ///< from the first task's stop to the last one's release
};

/// How the memory of a stopped tree is kept for the time after its release.
struct SnapshotOptions {
  uint64_t memory_limit = 0;        ///< bytes that it may take; 0: half of what is available
  uint64_t twin_from = 1ull << 20;  ///< smaller memories are copied: that is quicker than a fork
};
struct SnapshotReport {
  uint64_t memory_limit = 0, taken = 0;  ///< bytes; what may be taken by growth is their difference
  size_t twins = 0;                      ///< address spaces that a copy-on-write twin was made of
  uint64_t copied_small = 0;             ///< bytes of address spaces that were copied
  uint64_t copied_beside = 0;            ///< bytes that a twin does not have
  size_t stopped = 0;                    ///< address spaces that cannot be kept: the notes say why
  Diagnostics notes;
};
/// What happened after the release.
struct SnapshotGrowth {
  uint64_t most = 0;        ///< bytes that existed twice, as far as was seen
  uint64_t stopped_us = 0;  ///< how long the tree was stopped again because they were too many
};

/// A tree that is stopped under our control. Destroying it by any path resumes every task as it was.
class SeizedTree {
 public:
  /// Seizes everything below root and assembles the Application. Refusals are in context().diagnostics: the caller
  /// checks them before it goes on.
  static Result<std::unique_ptr<SeizedTree>> capture(const CaptureOptions&);
  virtual ~SeizedTree() = default;
  virtual resource::CaptureContext& context() = 0;
  virtual resource::ApplicationMemory& memory() = 0;
  virtual CaptureTimes times() const = 0;
  /// Begins a round of tracking (capture/round.h); `trackers` are those of the options.
  virtual Status begin_round(memory::Trackers& trackers) = 0;
  /// Keeps the address spaces as they are in this instant, so that memory() can be read of those that it is_kept() of
  /// when the tree has been released to run.
  virtual Result<SnapshotReport> snapshot(const SnapshotOptions&) = 0;
  /// All is read, or nobody wants to read it any more.
  virtual SnapshotGrowth end_snapshot() = 0;
  /// From here on it does not run on if we are killed: it stops.
  virtual void stop_if_we_die() = 0;
  /// The end: consumes the tree. Errors name tasks that could not be put back. Nothing to do when that has been done.
  virtual Status release(AfterDump) = 0;
};

}  // namespace stasis::capture
