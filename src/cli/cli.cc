#include "cli/cli.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>

#include "cli/criu_options.h"
#include "cli/options.h"
#include "cli/subcommands.h"

namespace stasis::cli {
namespace {

/// The interface version that callers of criu compare against.
constexpr std::string_view criu_version = "4.2";

Face face_of(const char* program) {
  return std::filesystem::path(program).filename().string().starts_with("criu") ? Face::criu : Face::stasis;
}

/// The exit status. criu names itself alone.
int tell_usage(const CLI::App& app, const std::string& command, const std::string& text, Face face) {
  fmt::print(stderr, "{}: {}\nTry '{} --help'.\n", face == Face::criu ? app.get_name() : command, text, command);
  return face == Face::criu ? 1 : 2;
}

std::string no_such_subcommand(const std::string& name) { return fmt::format("There is no subcommand '{}'", name); }

int wrong_usage(const CLI::App& app, const CLI::ParseError& problem, Face face) {
  if (problem.get_exit_code() == 0) return app.exit(problem);  // --help, --version
  const CLI::App* command = &app;
  std::string name = app.get_name(), text = problem.what();
  while (!command->get_subcommands().empty()) {  // those that have been given
    command = command->get_subcommands().front();
    name += " " + command->get_name();
  }
  const auto unknown = command->remaining();
  const bool lacks_command = problem.get_exit_code() == static_cast<int>(CLI::ExitCodes::RequiredError) &&
                             command->get_require_subcommand_min() > 0;
  if (lacks_command && !unknown.empty()) text = no_such_subcommand(unknown.front());
  return tell_usage(app, name, text, face);
}

/// "stasis --version", "criu -V" and, as criu allows it, "criu restore … --version".
std::string version_text(Face face) {
  if (face == Face::criu) return fmt::format("Version: {}", criu_version);
  return fmt::format("stasis {} (criu interface {})", STASIS_VERSION, criu_version);
}

struct Command {
  std::string_view name;
  void (*add)(CLI::App&, Action& chosen, Face);
  bool is_of_criu = false;
};
constexpr Command commands[] = {{"dump", add_dump, true},
                                {"pre-dump", add_pre_dump, true},
                                {"restore", add_restore, true},
                                {"check", add_check, true},
                                {"show", add_show},
                                {"plan", add_plan},
                                {"diff", add_diff},
                                {"dirty", add_dirty},
                                {"tree", add_tree},
                                {"cleanup", add_cleanup},
                                {"keygen", add_keygen},
                                {"dedup", add_dedup, true},
                                {"page-server", add_page_server, true},
                                {"lazy-pages", add_lazy_pages, true}};

bool is_command(const std::string& text) {
  return std::ranges::find(commands, text, &Command::name) != std::end(commands);
}

/// getopt takes options before the command, as in `criu -D DIR dump`; CLI11 wants the command first.
void put_command_first(std::vector<std::string>& arguments) {
  if (arguments.empty() || !arguments.front().starts_with('-')) return;
  const auto end = std::ranges::find(arguments, "--");
  // What comes after options that have their values with them is the command, even if we have no such command.
  const auto has_value = [](const std::string& text) { return text.starts_with('-') && text.contains('='); };
  auto command = std::find_if_not(arguments.begin(), end, has_value);
  if (command != end && command->starts_with('-')) {
    command = std::find_if(arguments.begin(), end, is_command);
    while (command != end && command + 1 != end && is_command(command[1])) ++command;  // in `-D dump dump`
  }
  if (command == end) return;
  std::rotate(arguments.begin(), command, command + 1);
}

}  // namespace

int run(int argc, char** argv) {
  const Face face = face_of(argv[0]);
  CLI::App app{"Saves the complete state of running programs and brings them back",
               face == Face::criu ? "criu" : "stasis"};
  app.set_version_flag("-V,--version", version_text(face));
  app.require_subcommand(1);
  app.fallthrough(false);

  auto arguments = normalise_arguments(argc, argv);
  put_command_first(arguments);
  // Declaring the options of all commands takes a millisecond: those of the others are only declared for --help.
  const bool known = !arguments.empty() && is_command(arguments.front());
  // Said now: what follows may be the name of another command, as in `criu cpuinfo dump`.
  if (!known && !arguments.empty() && !arguments.front().starts_with('-'))
    return tell_usage(app, app.get_name(), no_such_subcommand(arguments.front()), face);
  Action chosen;
  for (const auto& command : commands) {
    if (known && command.name != arguments.front()) continue;
    command.add(app, chosen, face);
    if (command.is_of_criu) add_criu_options(*app.get_subcommand(std::string(command.name)), arguments);
  }
  for (CLI::App* command : app.get_subcommands({})) command->set_version_flag("-V,--version", version_text(face));
  std::ranges::reverse(arguments);  // CLI11 takes them from the back
  try {
    app.parse(std::move(arguments));
  } catch (const CLI::ParseError& problem) {  // CLI11 reports by exception; it ends here
    return wrong_usage(app, problem, face);
  }
  return chosen();
}

}  // namespace stasis::cli
