// stasis keygen: keys for encrypted images.

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "cli/subcommands.h"
#include "image/keys.h"

namespace stasis::cli {
namespace {

struct Options {
  std::string file;
  bool shared = false;
};

/// What is printed is no secret.
Result<std::string> made(const Options& options) {
  if (!options.shared) return image::make_identity_file(options.file);
  TRY(image::make_shared_key_file(options.file));
  return std::string{};
}

}  // namespace

void add_keygen(CLI::App& app, Action& chosen, Face) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("keygen", "Make a key for encrypted images, in a file that only you can read");
  command->add_option("file", options->file, "The new file")->required()->type_name("FILE");
  command->add_flag("--shared", options->shared, "One key that both writes and reads, instead of an identity");
  command->callback([options, &chosen] {
    chosen = [options] {
      const auto text = made(*options);
      if (!text) {
        fmt::print(stderr, "Error: {}\n", text.error().message());
        return 1;
      }
      if (!text->empty()) fmt::print("{}\n", *text);
      return 0;
    };
  });
}

}  // namespace stasis::cli
