// Options as criu(8) spells them, in the shape the subcommands want.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace stasis::cli {

struct CommonOptions {
  std::string images_dir = ".";
  std::string work_dir;  ///< empty: the images directory
  std::string log_file;  ///< empty: stderr
  int verbosity = 2;     ///< 0 silent, 1 errors, 2 warnings, 3 information, 4 everything
  std::vector<std::string> action_scripts;
  std::string pidfile;
  bool display_stats = false;
  unsigned timeout = 10;
};

struct DumpOptions {
  pid_t tree = 0;
  bool leave_running = false, leave_stopped = false;
  bool cow = true;              ///< with leave_running: the tree runs on while its memory is written
  std::string snapshot_memory;  ///< empty: half of what is available
  std::string twin_from;        ///< for tests; empty: as SnapshotOptions has it
  bool shell_job = false;
  bool link_remap = false;
  bool external_unix = false;
  bool file_locks = false;
  std::string ghost_limit = "1M";
  std::string file_validation = "buildid";
  std::vector<std::string> external;
  bool evasive_devices = false, force_irmap = false;
  std::vector<std::string> irmap_scan;
};

struct RestoreOptions {
  bool detached = false, sibling = false;
  bool leave_stopped = false;
  bool shell_job = false;
  bool lazy_pages = false;
  std::string root;
  std::string file_validation = "buildid";
  std::string plan_cache;  ///< directory; empty: none
  std::vector<std::string> inherit_fd;
  std::vector<std::string> exec_cmd;  ///< after `--` with --exec-cmd: what stasis becomes once the tree runs
};

/// -D -W -o -v --action-script …: shared by all subcommands that work on images.
void add_common_options(CLI::App&, CommonOptions&);
void add_log_options(CLI::App&, CommonOptions&);
/// A flag that --no-NAME takes back, as criu's do: the later one wins.
CLI::Option* add_switch(CLI::App&, const std::string& names, bool& value, const std::string& description);
/// --inherit-fd of restore and plan.
void add_inherit_option(CLI::App&, std::vector<std::string>& given);
/// What comes later is read by somebody else, who releases nothing: the two do not go together.
void refuse_lazy_dedup(bool lazy_pages, bool auto_dedup);
/// --format of a program: plan::to_form.
void add_format_option(CLI::App&, std::string& format);

/// "1M", "256k", "4096" → bytes; 0 if it is not a size.
uint64_t parse_size(const std::string& text);

/// Rewrites what getopt allows and CLI11 does not: "-v4", "-vvv".
std::vector<std::string> normalise_arguments(int argc, char** argv);

}  // namespace stasis::cli
