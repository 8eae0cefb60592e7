// A room for state that belongs to a process or to each of its threads: credentials, timers, signals …
#pragma once

#include <string_view>

#include "base/result.h"
#include "image/task_records.h"
#include "model/application.h"
#include "plan/contributor.h"
#include "resource/capture_context.h"
#include "resource/leftovers.h"

namespace stasis::resource {

/// One file in src/resource implements it and holds all that stasis knows of this state. Planning is
/// plan::Contributor. Every part has a default: a room overrides what it needs.
class TaskRoom : public plan::Contributor {
 public:
  /// Reads from outside what can be read from outside (procfs, ptrace, sched_getattr …). `task` has its ids and
  /// threads.
  virtual Status capture(CaptureContext&, const ProcessView&, model::Task&) const { return {}; }
  /// Adds questions for the leader (process-wide state). References into the task stay valid until answered.
  virtual Status ask(CaptureContext&, model::Task&, Inquiry&) const { return {}; }
  /// Adds questions for one thread, the leader included.
  virtual Status ask(CaptureContext&, model::Task&, model::Thread&, Inquiry&) const { return {}; }

  /// Model → records of this task (CRIU's core, mm, ids …).
  virtual Status encode(const model::Application&, const model::Task&, image::TaskRecords&) const { return {}; }
  /// Records → model. All values are hostile.
  virtual Status decode(const image::TaskRecords&, model::Application&, model::Task&) const { return {}; }

  /// Whether this can be restored here and now; says so before anything is created.
  virtual void validate(const model::Application&, const model::Task&, Diagnostics&) const {}
  /// What of this remains on the system after a dump that ends the tree. Called once for all tasks.
  virtual void leftovers(const model::Application&, std::vector<Leftover>&) const {}
};

}  // namespace stasis::resource
