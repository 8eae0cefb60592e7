// stasis tree: bare process trees, planned, checked, run for real, made up, compared, drawn, spelled out.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>
#include <variant>

#include "cli/options.h"
#include "cli/subcommands.h"
#include "cli/target.h"
#include "execute/tree_run.h"
#include "kernel/proc.h"
#include "plan/bare_tree.h"
#include "plan/drawing.h"
#include "plan/shape.h"
#include "plan/tokens.h"
#include "plan/tree_history.h"
#include "plan/verify.h"

namespace stasis::cli {
namespace {

struct Options {
  std::string file, other, program, format = "json";
  pid_t pid = 0;
  uint64_t seed = 1;
  unsigned operations = 40, count = 100;
  bool print_program = false, print_hash = false, pid_namespaces = false, terminals = false;
  size_t search_limit = plan::TreeLimits{}.search_steps;
};

constexpr unsigned most = 1'000'000'000;  ///< of what takes a while each

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
  const auto given = TRY_IN(options.program, plan::from_json(TRY(kernel::read_file(options.program))));
  const auto program = plan::completed(given);
  const auto outcome = plan::outcome_of(program);
  auto rejection = outcome.rejection;
  if (!rejection && !options.file.empty())
    rejection = plan::verify(program, TRY(tree_in(options.file)), plan::Extent::tree);
  if (rejection) {
    // What has been put in stands before what was given: commands are counted as its author counts them.
    rejection->command -= std::min(rejection->command, program.commands.size() - given.commands.size());
    fmt::print("rejected: {}\n", rejection->message(given));
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
  const auto history =
      plan::random_history(options.seed, options.operations, options.pid_namespaces, options.terminals);
  fmt::print("{}\n",
             options.print_program ? plan::to_form(history.program, options.format) : plan::tree_to_json(history.tree));
  return 0;
}

Result<int> capture(const Options& options) {
  TRY(check_target("capture", options.pid));
  fmt::print("{}\n", plan::tree_to_json(TRY(execute::look_at_tree(options.pid))));
  return 0;
}

Result<int> canon(const Options& options) {
  const auto shape = TRY(plan::canonical_form(TRY(tree_in(options.file))));
  fmt::print("{}\n", options.print_hash ? shape.hash : plan::tree_to_json(shape.tree));
  return 0;
}

/// Different hashes decide; equal ones do not: the renaming is carried out and must give the other tree.
Result<int> same(const Options& options) {
  const auto tree = TRY(tree_in(options.file)), other = TRY(tree_in(options.other));
  const auto shape = TRY(plan::canonical_form(tree)), other_shape = TRY(plan::canonical_form(other));
  auto back = plan::inverted(other_shape.renaming);
  std::map<pid_t, pid_t> renaming;
  for (const auto& [id, name] : shape.renaming) renaming[id] = back[name];
  if (shape.hash != other_shape.hash ||
      plan::tree_to_json(plan::renamed(tree, renaming)) != plan::tree_to_json(plan::renamed(other, {}))) {
    fmt::print("different: {} and {}\n", shape.hash, other_shape.hash);
    return 1;
  }
  fmt::print("same: {}\n", shape.hash);
  for (const auto& [id, name] : renaming) {
    if (id != 0) fmt::print("{} is {}\n", id, name);
  }
  return 0;
}

using TreeOrProgram = std::variant<model::Application, plan::Program>;

/// A tree has processes, a program commands.
Result<TreeOrProgram> tree_or_program_in(const std::string& path) {
  const auto text = TRY(kernel::read_file(path));
  auto tree = plan::tree_from_json(text);
  if (tree) return std::move(*tree);
  auto program = plan::from_json(text);
  if (program) return plan::completed(std::move(*program));
  const bool meant_tree = text.find("\"processes\"") != std::string::npos;
  return TRY_IN(path, Result<TreeOrProgram>(fail(meant_tree ? tree.error() : program.error())));
}

Result<int> draw(const Options& options) {
  fmt::print("{}", std::visit([](const auto& one) { return plan::draw(one); }, TRY(tree_or_program_in(options.file))));
  return 0;
}

Result<int> encode(const Options& options) {
  const auto input = TRY(tree_or_program_in(options.file));
  const auto* program = std::get_if<plan::Program>(&input);
  const auto tokens = program != nullptr
                          ? plan::program_tokens(*program)
                          : plan::tree_tokens(TRY(plan::canonical_form(std::get<model::Application>(input))).tree);
  fmt::print("{}\n", plan::join(tokens));
  return 0;
}

Result<int> decode(const Options& options) {
  const auto tokens = plan::split(TRY(kernel::read_file(options.file)));
  const auto decoded = TRY_IN(options.file, plan::from_tokens(tokens));
  const auto* program = std::get_if<plan::Program>(&decoded);
  fmt::print("{}\n",
             program != nullptr ? plan::to_json(*program) : plan::tree_to_json(std::get<model::Application>(decoded)));
  return 0;
}

std::string json_string(std::string text) { return nlohmann::json(std::move(text)).dump(); }

/// Trees of all sizes up to that of so many operations, in canonical form, and programs for just that form.
Result<int> dataset(const Options& options) {
  for (uint64_t i = 0; i < options.count; ++i) {
    const auto operations = static_cast<unsigned>(i % (options.operations + 1));
    const auto history = plan::random_history(options.seed + i, operations, options.pid_namespaces, options.terminals);
    const auto shape = TRY(plan::canonical_form(history.tree));
    const auto program = TRY(program_for(shape.tree, options));
    fmt::print("{{\"hash\": \"{}\", \"tree\": {}, \"program\": {}}}\n", shape.hash,
               json_string(plan::join(plan::tree_tokens(shape.tree))),
               json_string(plan::join(plan::program_tokens(program))));
  }
  return 0;
}

/// The subcommands share their options.
struct Subcommands {
  CLI::App& tree;
  Action& chosen;
  std::shared_ptr<Options> options = std::make_shared<Options>();

  CLI::App& add(const char* name, const char* description, Result<int> (*action)(const Options&)) {
    CLI::App& command = *tree.add_subcommand(name, description);
    command.callback([options = options, action, &chosen = chosen] {
      chosen = [options, action] {
        const auto status = action(*options);
        if (status) return *status;
        fmt::print(stderr, "Error: {}\n", status.error().message());
        return 1;
      };
    });
    return command;
  }
  /// One that works on a file.
  CLI::App& add(const char* name, const char* description, Result<int> (*action)(const Options&), const char* file) {
    CLI::App& command = add(name, description, action);
    command.add_option("file", options->file, file)->required();
    return command;
  }
};

void add_search_limit(CLI::App& command, Options& options) {
  command.add_option("--search-limit", options.search_limit, "Steps after which the search for a history is given up")
      ->check(CLI::Range(1u, most));
}

void add_history_options(CLI::App& command, Options& options) {
  command.add_option("--seed", options.seed, "The same seed gives the same");
  command.add_option("--operations", options.operations, "How many (at most 100000)")->check(CLI::Range(0, 100'000));
  command.add_flag("--pid-namespaces", options.pid_namespaces, "Some processes begin pid namespaces of their own");
  command.add_flag("--terminals", options.terminals, "Some sessions are controlled by terminals");
}

void add_forms(Subcommands& all) {
  auto& options = *all.options;
  constexpr const char* tree = "The tree, as JSON";
  constexpr const char* either = "The tree or the program, as JSON";
  all.add("canon", "Print the canonical form of a tree: what its shape is", canon, tree)
      .add_flag("--hash", options.print_hash, "Print the hash of the shape instead (128 bits)");
  all.add("same", "Say whether two trees differ in no more than their pids", same, "A tree, as JSON")
      .add_option("other", options.other, "Another")
      ->required();
  all.add("draw", "Draw a tree or a program, as SVG", draw, either);
  all.add("encode", "Print the shape of a tree, or a program, as a sequence of words", encode, either);
  all.add("decode", "Print what a sequence of words says, as JSON", decode, "The words");

  CLI::App& pairs = all.add("dataset", "Print random trees and programs for them, as words in JSON lines", dataset);
  pairs.add_option("--count", options.count, "How many pairs")->check(CLI::Range(1u, most));
  add_history_options(pairs, options);
  add_search_limit(pairs, options);
}

}  // namespace

void add_tree(CLI::App& app, Action& chosen, Face) {
  CLI::App* tree = app.add_subcommand("tree", "Bare process trees: plan, check and run programs that build them");
  tree->require_subcommand(1);
  Subcommands all{*tree, chosen};
  auto& options = *all.options;

  CLI::App& made = all.add("plan", "Print a verified program that builds the tree", plan_tree, "The tree, as JSON");
  add_format_option(made, options.format);
  add_search_limit(made, options);

  CLI::App& checked = all.add("check", "Say what a program leads to, or which command cannot work", check);
  checked.add_option("program", options.program, "The program, as JSON")->required();
  checked.add_option("file", options.file, "The tree that it should lead to, as JSON");

  CLI::App& ran =
      all.add("run", "Build the tree in a new pid namespace, compare it, take it down", run, "The tree, as JSON");
  add_search_limit(ran, options);

  CLI::App& invented = all.add("random", "Print a tree that random operations of a kernel lead to", random);
  add_history_options(invented, options);
  invented.add_flag("--program", options.print_program, "Print the operations instead of the tree");
  add_format_option(invented, options.format);

  add_forms(all);

  add_target_option(all.add("capture", "Print the tree below a process, as /proc shows it", capture), options.pid);
}

}  // namespace stasis::cli
