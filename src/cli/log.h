// The log of one run: lines as criu writes them, "(00.001234) Error …", so that tools that read criu's logs read ours.
#pragma once

#include <string>

#include <spdlog/spdlog.h>

#include "base/result.h"

namespace stasis::cli {

struct CommonOptions;

/// A logger for this run, to a file in the work directory or to stderr.
Result<std::shared_ptr<spdlog::logger>> open_log(const CommonOptions& options);

}  // namespace stasis::cli
