#include "cli/target.h"

#include <signal.h>

#include <CLI/CLI.hpp>
#include <cerrno>

#include <fmt/format.h>

#include "kernel/map_files.h"

namespace stasis::cli {

void add_target_option(CLI::App& app, pid_t& root) {
  constexpr pid_t largest = 1 << 22;  // PID_MAX_LIMIT
  app.add_option("-t,--tree", root, "The root of the tree")
      ->required()
      ->type_name("PID")
      ->check(CLI::Range(1, largest));
}

Status check_target(std::string_view operation, pid_t root) {
  if (kill(root, 0) == 0 || errno != ESRCH) return {};
  return fail(Error::conflict(fmt::format("{} task {}", operation, root), "there is no such process")
                  .advise("check the pid given with --tree: it is that of this pid namespace"));
}

Status check_target_and_rights(std::string_view operation, pid_t root) {
  TRY(check_target(operation, root));
  auto followed = kernel::follow_map_files();
  if (followed) return {};
  return fail(std::move(followed)
                  .error()
                  .within(fmt::format("{} task {}", operation, root))
                  .advise("run as root, or with CAP_CHECKPOINT_RESTORE and CAP_SYS_PTRACE; `stasis check` tells more"));
}

}  // namespace stasis::cli
