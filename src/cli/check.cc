// stasis check: what the kernel offers of what stasis uses, and what each missing piece costs.
//
// Each feature is tried for real, by a call that needs no privilege beyond what the feature needs and leaves nothing
// behind. `criu check` keeps criu's answers: "Looks good." and exit status 0, or a sentence and 1.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "cli/options.h"
#include "cli/subcommands.h"
#include "kernel/features.h"

namespace stasis::cli {
namespace {

struct Options {
  CommonOptions common;  ///< accepted as for the other commands; the report goes to standard output
  std::vector<std::string> features;
  bool extra = false, all = false, experimental = false;
};

int check_named(const std::vector<std::string>& names, const std::vector<kernel::Feature>& features) {
  bool good = true;
  for (const auto& name : names) {
    const auto found = std::ranges::find(features, name, &kernel::Feature::criu_name);
    if (name.empty() || found == features.end()) {
      fmt::print(stderr, "Unknown feature '{}'\n", name);
      return 1;
    }
    const auto problem = found->probe();
    if (!problem.empty()) fmt::print("Warn: {} is missing: {}\n", name, problem);
    good = good && problem.empty();
  }
  if (good) fmt::print("Looks good.\n");
  return good ? 0 : 1;
}

int check_all(const std::vector<kernel::Feature>& features, Face face) {
  bool good = true;
  for (const auto& feature : features) {
    const std::string problem = feature.probe();
    if (!problem.empty() && feature.required) good = false;
    if (face == Face::criu && problem.empty()) continue;
    fmt::print("{:<8} {:<34} {}\n",
               problem.empty()    ? "yes"
               : feature.required ? "MISSING"
                                  : "no",
               feature.name,
               problem.empty() ? feature.used_for : fmt::format("{}; without it: {}", problem, feature.cost));
  }
  if (good)
    fmt::print("Looks good.\n");
  else
    fmt::print(stderr, "Some required features are missing: see above.\n");
  return good ? 0 : 1;
}

}  // namespace

void add_check(CLI::App& app, Action& chosen, Face face) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("check", "List the kernel features needed, which are there, and what missing ones cost");
  add_common_options(*command, options->common);
  command->add_option("--feature", options->features, "Check only this one")->type_name("NAME");
  add_switch(*command, "--extra", options->extra, "Accepted for criu's sake: everything is always checked");
  add_switch(*command, "--all", options->all, "Likewise");
  add_switch(*command, "--experimental", options->experimental, "Likewise");
  command->callback([options, &chosen, face] {
    chosen = [options, face] {
      const auto& features = kernel::features();
      return options->features.empty() ? check_all(features, face) : check_named(options->features, features);
    };
  });
}

}  // namespace stasis::cli
