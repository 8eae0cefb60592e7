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
  uint64_t freezing_us = 0, frozen_us = 0;
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
  /// The end: consumes the tree. Errors name tasks that could not be put back.
  virtual Status release(AfterDump) = 0;
};

}  // namespace stasis::capture
