// Options of criu(8) that concern what stasis does not do, or does without being told.
#pragma once

#include <span>
#include <string>

namespace CLI {
class App;
}

namespace stasis::cli {

/// Callers pass criu's options whether they matter or not (zdtm, LXC and runc do). Three sorts are told apart: those
/// that stasis has (declared where they are used); those that allow or steer something that is not there or has no
/// choice here: accepted, without effect (a kind that stasis cannot dump is refused by name wherever it is found); and
/// those that ask for a result which would not come: refused as wrong usage.
/// Declaring them takes longer than most commands' own work: only those that are among the `arguments` are, and all for
/// --help.
void add_criu_options(CLI::App& command, std::span<const std::string> arguments);

}  // namespace stasis::cli
