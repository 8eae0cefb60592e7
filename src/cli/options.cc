#include "cli/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "base/checked.h"

namespace stasis::cli {
namespace {

bool is_number(const char* text) { return *text != '\0' && text[std::strspn(text, "0123456789")] == '\0'; }

}  // namespace

void add_log_options(CLI::App& app, CommonOptions& options) {
  app.add_option("-o,--log-file", options.log_file,
                 "Write the log to this file (in the work directory) instead of stderr");
  app.add_option("-v,--verbosity", options.verbosity,
                 "0 silent, 1 errors, 2 warnings, 3 information, 4 (-v4, -vv) or more everything; -v is 3")
      ->type_name("LEVEL")
      ->transform(CLI::Bound(0, 4));
}

void add_common_options(CLI::App& app, CommonOptions& options) {
  app.add_option("-D,--images-dir", options.images_dir, "Directory of the images")->type_name("DIR");
  app.add_option("-W,--work-dir", options.work_dir,
                 "Directory for logs, pidfile and statistics (default: the images directory)")
      ->type_name("DIR");
  add_log_options(app, options);
  app.add_option("--action-script", options.action_scripts,
                 "Run this at pre-dump, post-dump, pre-restore, post-restore, …")
      ->type_name("SCRIPT");
  app.add_option("--pidfile", options.pidfile, "Write the pid of the restored root, or of the daemon, to this file");
  add_switch(app, "--display-stats", options.display_stats, "Print the statistics when done");
  app.add_option("--timeout", options.timeout, "Seconds after which stopping the tree is given up")
      ->type_name("SECONDS");
}

CLI::Option* add_switch(CLI::App& app, const std::string& names, bool& value, const std::string& description) {
  const auto name = names.substr(names.find("--") + 2);
  app.add_flag_callback("--no-" + name, [&value] { value = false; })->trigger_on_parse()->group("");
  return app.add_flag_callback(names, [&value] { value = true; }, description)->trigger_on_parse();
}

void add_inherit_option(CLI::App& app, std::vector<std::string>& given) {
  app.add_option(
         "--inherit-fd", given,
         "Our descriptor N takes the place of a saved file: pipe:[INODE], socket:[INODE], file[MNT:INODE], a path")
      ->type_name("fd[N]:NAME")
      ->allow_extra_args(false);
}

void add_format_option(CLI::App& app, std::string& format) {
  app.add_option("--format", format, "text, json or dot")->check(CLI::IsMember({"text", "json", "dot"}));
}

void refuse_lazy_dedup(bool lazy_pages, bool auto_dedup) {
  if (!lazy_pages || !auto_dedup) return;
  throw CLI::ValidationError("--auto-dedup", "goes not with --lazy-pages, whose daemon still needs the images");
}

uint64_t parse_size(const std::string& text) {
  uint64_t number = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{}) return 0;
  const std::string suffix(rest, text.data() + text.size());
  uint64_t unit = 1;
  if (suffix == "k" || suffix == "K")
    unit = 1 << 10;
  else if (suffix == "m" || suffix == "M")
    unit = 1 << 20;
  else if (suffix == "g" || suffix == "G")
    unit = 1 << 30;
  else if (!suffix.empty())
    return 0;
  return checked_multiply(number, unit).value_or(0);
}

std::vector<std::string> normalise_arguments(int argc, char** argv) {
  std::vector<std::string> arguments;
  bool options_ended = false;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--") options_ended = true;
    const bool is_verbosity = !options_ended && argument.starts_with("-v");
    const bool counts = argument.find_first_not_of('v', 1) == std::string::npos;
    if (argument == "-v" && is_verbosity && i + 1 < argc && is_number(argv[i + 1])) {  // more than getopt allows
      arguments.push_back("--verbosity=" + std::string(argv[++i]));
    } else if (is_verbosity && counts) {
      arguments.push_back("--verbosity=" + std::to_string(std::min<size_t>(argument.size() - 1 + 2, 4)));
    } else if (is_verbosity) {  // "-v4"; criu reads anything that is no number ("-verbosity=4") as 0
      arguments.push_back("--verbosity=" + std::to_string(std::clamp(std::atoi(argument.c_str() + 2), 0, 4)));
    } else {
      arguments.push_back(argument);
    }
  }
  return arguments;
}

}  // namespace stasis::cli
