// One function per subcommand, each in its own file: declares its options and what happens when it is chosen.
#pragma once

#include <functional>
#include <string_view>

namespace CLI {
class App;
}

namespace stasis::cli {

/// Filled in by the subcommand that was chosen; run after parsing.
using Action = std::function<int()>;

/// Who we are taken for: under the name `criu` the answers are criu's.
enum class Face { stasis, criu };

void add_dump(CLI::App&, Action& chosen, Face);
void add_pre_dump(CLI::App&, Action& chosen, Face);
void add_dirty(CLI::App&, Action& chosen, Face);
void add_cleanup(CLI::App&, Action& chosen, Face);
void add_restore(CLI::App&, Action& chosen, Face);
void add_lazy_pages(CLI::App&, Action& chosen, Face);
void add_show(CLI::App&, Action& chosen, Face);
void add_plan(CLI::App&, Action& chosen, Face);
void add_check(CLI::App&, Action& chosen, Face);
void add_diff(CLI::App&, Action& chosen, Face);
void add_dedup(CLI::App&, Action& chosen, Face);
void add_page_server(CLI::App&, Action& chosen, Face);
void add_keygen(CLI::App&, Action& chosen, Face);
void add_tree(CLI::App&, Action& chosen, Face);

}  // namespace stasis::cli
