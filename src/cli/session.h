// One run of a subcommand that works on images: its log, directories, scripts and statistics.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include <spdlog/spdlog.h>

#include "base/diagnostics.h"
#include "base/result.h"
#include "cli/options.h"

namespace stasis::cli {

class Session {
 public:
  static Result<Session> open(const CommonOptions& options);

  spdlog::logger& log() const { return *log_; }
  const CommonOptions& options() const { return options_; }
  std::string work_path(const std::string& file) const;

  /// Runs every --action-script with CRTOOLS_SCRIPT_ACTION and friends set as criu(8) documents.
  /// A script that fails makes the step fail.
  Status run_scripts(const std::string& action, pid_t root) const;

  void report(const Diagnostics& diagnostics) const;
  /// The same; an error if they refuse: `operation` cannot be done, because of `cause`.
  Status accept(const Diagnostics&, std::string operation, std::string cause) const;
  /// Logs an error, and prints it on stderr when the log goes to a file. Returns the exit status 1.
  int failed(const Error& error) const;

  uint64_t microseconds() const;  ///< since the session was opened

 private:
  Session() = default;
  CommonOptions options_;
  std::shared_ptr<spdlog::logger> log_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Opens a session for the work of a command and tells its error, if there is one. The exit status.
int run_in_session(const CommonOptions&, const std::function<Status(const Session&)>& work);

}  // namespace stasis::cli
