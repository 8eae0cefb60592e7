// stasis tree: bare process trees, planned, checked, run for real, made up.

#include <CLI/CLI.hpp>

#include "cli/options.h"
#include "cli/subcommands.h"
#include "execute/tree_run.h"
#include "kernel/proc.h"
#include "plan/bare_tree.h"
#include "plan/tree_history.h"
#include "plan/verify.h"

namespace stasis::cli {
namespace {

struct Options {
  std::string file, program, format = "json";
  pid_t pid = 0;
  uint64_t seed = 1;
  unsigned operations = 40;
  bool print_program = false;
  size_t search_limit = plan::TreeLimits{}.search_steps;
};

Result<model::Application> tree_in(const std::string& path) {
  return TRY_IN(path, plan::tree_from_json(TRY(kernel::read_file(path))));
}

/// Planned and, whoever has planned it, verified.
Result<plan::Program> program_for(const model::Application& tree, const Options& options) {
  auto program = TRY(plan::make_tree_program(tree, {.search_steps = options.search_limit}));
  if (const auto rejection = plan::verify(program, tree, plan::Extent::tree))
    return fail(Error::internal("verify the plan", rejection->message(program)));
  return program;
}

Result<int> plan_tree(const Options& options) {
  fmt::print("{}\n", plan::to_form(TRY(program_for(TRY(tree_in(options.file)), options)), options.format));
  return 0;
}

Result<int> check(const Options& options) {
  const auto program =
      plan::with_root(TRY_IN(options.program, plan::from_json(TRY(kernel::read_file(options.program)))));
  const auto outcome = plan::outcome_of(program);
  auto rejection = outcome.rejection;
  if (!rejection && !options.file.empty())
    rejection = plan::verify(program, TRY(tree_in(options.file)), plan::Extent::tree);
  if (rejection) {
    fmt::print("rejected: {}\n", rejection->message(program));
    return 1;
  }
  fmt::print("{}\n", options.file.empty() ? plan::tree_to_json(outcome.tree) : "accepted: it leads to this tree");
  return 0;
}

Result<int> run(const Options& options) {
  const auto tree = TRY(tree_in(options.file));
  const auto differences = TRY(execute::run_tree(TRY(program_for(tree, options)), tree));
  for (const auto& difference : differences) fmt::print("{}\n", difference);
  if (!differences.empty()) return 1;
  fmt::print("equal: {} processes\n", tree.tasks.size());
  return 0;
}

Result<int> random(const Options& options) {
  const auto history = plan::random_history(options.seed, options.operations);
  fmt::print("{}\n",
             options.print_program ? plan::to_form(history.program, options.format) : plan::tree_to_json(history.tree));
  return 0;
}

Result<int> capture(const Options& options) {
  fmt::print("{}\n", plan::tree_to_json(TRY(execute::look_at_tree(options.pid))));
  return 0;
}

/// Sets what happens when `command` is chosen.
void do_when_chosen(CLI::App& command, Action& chosen, const std::shared_ptr<Options>& options,
                    Result<int> (*action)(const Options&)) {
  command.callback([options, action, &chosen] {
    chosen = [options, action] {
      const auto status = action(*options);
      if (status) return *status;
      fmt::print(stderr, "Error: {}\n", status.error().message());
      return 1;
    };
  });
}

void add_search_limit(CLI::App& command, Options& options) {
  command.add_option("--search-limit", options.search_limit, "Steps after which the search for a history is given up")
      ->check(CLI::PositiveNumber);
}

}  // namespace

void add_tree(CLI::App& app, Action& chosen, Face) {
  const auto options = std::make_shared<Options>();
  CLI::App* tree = app.add_subcommand("tree", "Bare process trees: plan, check and run programs that build them");
  tree->require_subcommand(1);

  CLI::App* made = tree->add_subcommand("plan", "Print a verified program that builds the tree");
  made->add_option("file", options->file, "The tree, as JSON")->required();
  add_format_option(*made, options->format);
  add_search_limit(*made, *options);
  do_when_chosen(*made, chosen, options, plan_tree);

  CLI::App* checked = tree->add_subcommand("check", "Say what a program leads to, or which command cannot work");
  checked->add_option("program", options->program, "The program, as JSON")->required();
  checked->add_option("file", options->file, "The tree that it should lead to, as JSON");
  do_when_chosen(*checked, chosen, options, check);

  CLI::App* ran = tree->add_subcommand("run", "Build the tree in a new pid namespace, compare it, take it down");
  ran->add_option("file", options->file, "The tree, as JSON")->required();
  add_search_limit(*ran, *options);
  do_when_chosen(*ran, chosen, options, run);

  CLI::App* invented = tree->add_subcommand("random", "Print a tree that random operations of a kernel lead to");
  invented->add_option("--seed", options->seed, "The same seed gives the same tree");
  invented->add_option("--operations", options->operations, "How many (at most 100000)")->check(CLI::Range(0, 100'000));
  invented->add_flag("--program", options->print_program, "Print the operations instead of the tree");
  add_format_option(*invented, options->format);
  do_when_chosen(*invented, chosen, options, random);

  CLI::App* captured = tree->add_subcommand("capture", "Print the tree below a process, as /proc shows it");
  captured->add_option("-t,--tree", options->pid, "The root's pid")->required();
  do_when_chosen(*captured, chosen, options, capture);
}

}  // namespace stasis::cli
