#include "cli/criu_options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <set>
#include <string>
#include <string_view>

namespace stasis::cli {
namespace {

enum class Takes : unsigned char { nothing, value, optional_value };

struct Accepted {
  const char* names;
  Takes takes;
};
/// They allow what is refused by name where it is found, or choose between ways of which stasis has one.
constexpr Accepted accepted[] = {
    {"--allow-uprobes", Takes::nothing},
    {"--cgroup-dump-controller", Takes::value},
    {"--cgroup-props", Takes::value},
    {"--cgroup-props-file", Takes::value},
    {"--cgroup-root", Takes::value},
    {"--cgroup-yard", Takes::value},
    {"--cpu-cap", Takes::optional_value},
    {"--empty-ns", Takes::value},
    {"--enable-external-masters", Takes::nothing},
    {"--enable-external-sharing", Takes::nothing},
    {"--enable-fs", Takes::value},
    {"--ext-mount-map", Takes::value},
    {"--freeze-cgroup", Takes::value},
    {"--ghost-fiemap", Takes::nothing},
    {"-L,--libdir", Takes::value},
    {"--default-config", Takes::nothing},
    {"--log-pid", Takes::nothing},
    {"--lsm-mount-context", Takes::value},
    {"--lsm-profile", Takes::value},
    {"--manage-cgroups", Takes::optional_value},
    {"--mntns-compat-mode", Takes::nothing},
    {"-r,--root", Takes::value},
    {"--skip-file-rwx-check", Takes::nothing},
    {"--skip-mnt", Takes::value},
    {"--unprivileged", Takes::nothing},
    {"--weak-sysctls", Takes::nothing},
};

/// Criu's options are the same for all commands: those of another command are accepted, too.
constexpr Accepted of_other_commands[] = {
    {"--auto-dedup", Takes::nothing},
    {"--page-server", Takes::nothing},
    {"--address", Takes::value},
    {"--port", Takes::value},
    {"--ps-socket", Takes::value},
    {"--tls", Takes::nothing},
    {"--tls-cacert", Takes::value},
    {"--tls-cacrl", Takes::value},
    {"--tls-cert", Takes::value},
    {"--tls-key", Takes::value},
    {"--tls-no-cn-verify", Takes::nothing},
    {"--daemon", Takes::nothing},
    {"-t,--tree", Takes::value},
    {"-R,--leave-running", Takes::nothing},
    {"-s,--leave-stopped", Takes::nothing},
    {"-j,--shell-job", Takes::nothing},
    {"--link-remap", Takes::nothing},
    {"-l,--file-locks", Takes::nothing},
    {"--ghost-limit", Takes::value},
    {"--external", Takes::value},
    {"-x,--ext-unix-sk", Takes::optional_value},
    {"--network-lock", Takes::value},
    {"--skip-in-flight", Takes::nothing},
    {"--tcp-close", Takes::nothing},
    {"--tcp-established", Takes::nothing},
    {"-d,--restore-detached", Takes::nothing},
    {"-S,--restore-sibling", Takes::nothing},
    {"--file-validation", Takes::value},
    {"--feature", Takes::value},
    {"--evasive-devices", Takes::nothing},
    {"--force-irmap", Takes::nothing},
    {"--irmap-scan-path", Takes::value},
    {"--inherit-fd", Takes::value},
    {"--pre-dump-mode", Takes::value},
    {"--prev-images-dir", Takes::value},
    {"--track-mem", Takes::nothing},
};

struct Refused {
  const char* name;
  Takes takes;
  const char* reason;
};
constexpr Refused refused[] = {
    {"--config", Takes::value, "configuration files are not read; pass the options themselves"},
    {"--join-ns", Takes::value, "a tree is restored in the namespaces of stasis or in a pid namespace of its own"},
    {"--lazy-pages", Takes::nothing, "only dump, restore, plan and page-server know memory that comes later"},
    {"--status-fd", Takes::value, "wait for the end of stasis instead"},
    {"--stream", Takes::nothing, "images are written to a directory only"},
};

/// "-x,--ext-unix-sk" → "--ext-unix-sk"
std::string_view long_name(std::string_view names) { return names.substr(names.find("--")); }

/// What criu has as a flag can be taken back.
std::string taken_back(std::string_view names) { return fmt::format("--no-{}", long_name(names).substr(2)); }

/// Declares the option; `seen` is called when it is given.
template <typename Seen>
CLI::Option* declare(CLI::App& command, const char* names, Takes takes, Seen seen) {
  if (takes == Takes::nothing) return command.add_flag_callback(names, seen);
  auto* option = command.add_option_function<std::vector<std::string>>(names, [seen](const auto&) { seen(); });
  option->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)->allow_extra_args(false);
  return option->type_name("VALUE")->expected(takes == Takes::optional_value ? 0 : 1, 1);
}

/// Single letters may stand anywhere in a cluster of them.
bool has_letter(std::string_view names) { return names.size() > 1 && names[0] == '-' && names[1] != '-'; }

/// Of the command line, without what is declared elsewhere.
class Mentioned {
 public:
  explicit Mentioned(std::span<const std::string> arguments) {
    for (const std::string_view argument : arguments) {
      asks_for_help_ = asks_for_help_ || argument == "-h" || argument.starts_with("--help");
      if (argument.starts_with("--")) long_names_.insert(argument.substr(0, argument.find('=')));
    }
  }
  bool contains(std::string_view names) const {
    return asks_for_help_ || has_letter(names) || long_names_.contains(long_name(names)) ||
           long_names_.contains(taken_back(names));
  }

 private:
  std::set<std::string_view> long_names_;
  bool asks_for_help_ = false;
};

}  // namespace

void add_criu_options(CLI::App& command, std::span<const std::string> arguments) {
  const Mentioned mentioned(arguments);
  const auto accept = [&](const char* names, Takes takes) {
    if (!mentioned.contains(names)) return;
    declare(command, names, takes, [] {})->group("Accepted as criu does, without effect here");
    if (takes == Takes::nothing) command.add_flag_callback(taken_back(names), [] {})->group("");
  };
  for (const auto& [names, takes] : accepted) accept(names, takes);
  for (const auto& [names, takes] : of_other_commands) {
    if (command.get_option_no_throw(std::string(long_name(names))) == nullptr) accept(names, takes);
  }
  for (const auto& [name, takes, reason] : refused) {
    if (!mentioned.contains(name) || command.get_option_no_throw(name) != nullptr) continue;
    const auto refuse = [name, reason] {
      // CLI11's way to say so; cli.cc turns it into the message and the exit status.
      throw CLI::ValidationError(fmt::format("{} is refused: {}", name, reason));
    };
    if (takes != Takes::nothing) {
      declare(command, name, takes, refuse)->group("");
      continue;
    }
    const auto refuse_if_set = [refuse](int64_t value) {
      if (value > 0) refuse();
    };
    command.add_flag_function(fmt::format("{},!{}", name, taken_back(name)), refuse_if_set)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
        ->group("");
  }
}

}  // namespace stasis::cli
