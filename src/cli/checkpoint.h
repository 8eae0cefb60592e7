// Reading a checkpoint up to the point where it could be run: decoded, validated here, planned; and verified, which
// `restore` does while it gets ready to run the Program. `plan` prints exactly what it runs.
#pragma once

#include <optional>

#include "cli/plan_cache.h"
#include "cli/session.h"
#include "cli/statistics.h"
#include "image/directory.h"
#include "model/application.h"
#include "plan/program.h"
#include "resource/network_facts.h"

namespace stasis::cli {

struct CheckpointPolicy {
  bool shell_job = false;
  bool tcp_established = true, tcp_close = false;
  std::string file_validation = "buildid";
  std::string plan_cache;  ///< directory; empty: none
  std::vector<std::string> inherit_fd = {};
  bool lazy_pages = false;
};

struct Checkpoint {
  model::Application application;
  plan::Program program;
  resource::NetworkFacts network;
  RestoreStatistics pages;
  std::optional<PlanCache> cache;
};

/// Its Program must not be run, or shown, before it has been verified.
Result<Checkpoint> load_checkpoint(const image::Directory&, const Session&, const CheckpointPolicy&);
/// From then on the plan cache knows the shape of this tree.
Status verify(const Checkpoint&, const Session&);

}  // namespace stasis::cli
