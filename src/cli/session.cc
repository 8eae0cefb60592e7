#include "cli/session.h"

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <filesystem>

#include "cli/exec_command.h"
#include "cli/log.h"

namespace stasis::cli {
namespace {

std::vector<std::string> script_environment(const CommonOptions& options, const std::string& action, pid_t root) {
  std::vector<std::string> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.emplace_back(*entry);
  environment.push_back("CRTOOLS_SCRIPT_ACTION=" + action);
  std::error_code ignored;
  environment.push_back("CRTOOLS_IMAGE_DIR=" + std::filesystem::absolute(options.images_dir, ignored).string());
  if (root > 0) environment.push_back("CRTOOLS_INIT_PID=" + std::to_string(root));
  return environment;
}

/// How a shell that ran a script has ended; nothing: well.
std::string how_it_ended(int status) {
  constexpr int not_executable = 126, not_found = 127, of_signals = 128;  // sh(1)
  const int signal = WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status) - of_signals;
  if (signal > 0 && sigdescr_np(signal) != nullptr)
    return fmt::format("killed by signal {} ({})", signal, sigdescr_np(signal));
  switch (const int code = WEXITSTATUS(status)) {
    case 0:
      return {};
    case not_executable:
      return "it cannot be executed (exit status 126)";
    case not_found:
      return "it is not found (exit status 127)";
    default:
      return fmt::format("exit status {}", code);
  }
}

/// Found out before anything is done: a tree must not have ended before its pidfile or log turns out to have no place.
Status check_work_dir(const CommonOptions& options) {
  if (options.work_dir.empty() || access((options.work_dir + "/.").c_str(), F_OK) == 0) return {};
  return fail(Error::system("open work directory", errno, options.work_dir)
                  .advise("create the directory, or name another one with -W"));
}

}  // namespace

Result<Session> Session::open(const CommonOptions& options) {
  TRY(check_work_dir(options));
  Session session;
  session.options_ = options;
  session.log_ = TRY(open_log(options));
  return session;
}

std::string Session::work_path(const std::string& file) const {
  if (file.starts_with('/')) return file;
  return (options_.work_dir.empty() ? options_.images_dir : options_.work_dir) + "/" + file;
}

Status Session::run_scripts(const std::string& action, pid_t root) const {
  auto environment = script_environment(options_, action, root);
  for (const auto& script : options_.action_scripts) {
    log_->info("Running {} at {}", script, action);
    std::vector<std::string> arguments = {"sh", "-c", script};
    pid_t child = 0;
    posix_spawnattr_t attributes;
    sigset_t nothing;
    sigemptyset(&nothing);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setsigmask(&attributes, &nothing);  // what we wait for by signalfd is ours alone
    const int error =
        posix_spawn(&child, "/bin/sh", nullptr, &attributes, pointers(arguments).data(), pointers(environment).data());
    posix_spawnattr_destroy(&attributes);
    if (error != 0) return fail(Error::system("start the action script", error, script));
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (auto problem = how_it_ended(status); !problem.empty()) {
      return fail(Error::conflict("run the action script", std::move(problem), script + " at " + action)
                      .advise("the operation is stopped because a script may veto it"));
    }
  }
  return {};
}

void Session::report(const Diagnostics& diagnostics) const {
  for (const auto& diagnostic : diagnostics.all()) {
    switch (diagnostic.severity) {
      case Diagnostic::Severity::refusal:
        log_->error("{}", diagnostic.text());
        if (!options_.log_file.empty() && options_.verbosity > 0) fmt::print(stderr, "Error: {}\n", diagnostic.text());
        break;
      case Diagnostic::Severity::warning:
        log_->warn("{}", diagnostic.text());
        break;
      case Diagnostic::Severity::note:
        log_->info("{}", diagnostic.text());
        break;
    }
  }
}

Status Session::accept(const Diagnostics& diagnostics, std::string operation, std::string cause) const {
  report(diagnostics);
  if (!diagnostics.refused()) return {};
  return fail(Error::unsupported(std::move(operation), std::move(cause) + " (each case is named above)"));
}

int Session::failed(const Error& error) const {
  log_->error("{}", error.message());
  if (!options_.log_file.empty() && options_.verbosity > 0) fmt::print(stderr, "Error: {}\n", error.message());
  return 1;
}

uint64_t Session::microseconds() const {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - start_).count();
}

int run_in_session(const CommonOptions& options, const std::function<Status(const Session&)>& work) {
  const auto session = Session::open(options);
  if (!session) {
    fmt::print(stderr, "Error: {}\n", session.error().message());
    return 1;
  }
  const Status done = work(*session);
  const int status = done ? 0 : session->failed(done.error());
  session->log().flush();  // here a disk that is full is told; at exit it is not
  return status;
}

}  // namespace stasis::cli
