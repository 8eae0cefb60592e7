// Reading a checkpoint up to the point where it could be run: decoded, validated here, planned and verified.
// `plan` prints exactly this Program, `restore` runs exactly it.
#pragma once

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
};

Result<Checkpoint> load_checkpoint(const image::Directory&, const Session&, const CheckpointPolicy&);

}  // namespace stasis::cli
