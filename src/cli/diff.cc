// stasis diff: what differs between two checkpoints of the same tree.

#include <CLI/CLI.hpp>

#include "cli/key_options.h"
#include "cli/session.h"
#include "cli/subcommands.h"
#include "image/directory.h"
#include "model/difference.h"
#include "resource/codec.h"

namespace stasis::cli {
namespace {

struct Options {
  std::string before, after;
  std::vector<std::string> ignored;
  KeyOptions keys;
};

Result<std::vector<std::string>> compared(const Options& options) {
  const auto before = TRY(resource::decode(TRY(open_images(options.before, options.keys)))).application;
  const auto after = TRY(resource::decode(TRY(open_images(options.after, options.keys)))).application;
  return model::differences(before, after, {options.ignored.begin(), options.ignored.end()});
}

}  // namespace

void add_diff(CLI::App& app, Action& chosen, Face) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("diff", "Tell what differs between two checkpoints of the same tree");
  command->add_option("before", options->before, "The first directory of images")->required()->type_name("DIR");
  command->add_option("after", options->after, "The second")->required()->type_name("DIR");
  command->add_option("--ignore", options->ignored, "A part that may differ: timers, memory.mappings, …")
      ->type_name("PART");
  add_key_options(*command, options->keys);
  command->callback([options, &chosen] {
    chosen = [options] {
      const auto found = compared(*options);
      if (!found) {
        fmt::print(stderr, "Error: {}\n", found.error().message());
        return 2;
      }
      for (const auto& difference : *found) fmt::print("{}\n", difference);
      return found->empty() ? 0 : 1;
    };
  });
}

}  // namespace stasis::cli
