// stasis cleanup: removes what a dump has placed on the system for the restore, when there will be none.

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "cli/key_options.h"
#include "cli/session.h"
#include "cli/subcommands.h"
#include "image/directory.h"
#include "resource/codec.h"
#include "resource/traces.h"

namespace stasis::cli {
namespace {

struct Options {
  CommonOptions common;
  KeyOptions keys;
};

/// Images may name anything: only what is provably placed by a dump goes. The rest is named, and stays.
Status clean_up(const Options& options, const Session& session) {
  const auto images = TRY(open_images(options.common.images_dir, options.keys));
  const auto checkpoint = TRY(resource::decode(images));
  size_t failures = 0;
  const auto network = TRY(resource::read_network_facts(images));
  for (const auto& leftover : resource::leftovers(checkpoint.application, network)) {
    if (!leftover.remove) {
      fmt::print("stays: {}\n    to remove it: {}\n", leftover.what, leftover.removal);
      continue;
    }
    const auto removed = leftover.remove();
    if (removed) {
      fmt::print("{}: {}\n", *removed ? "removed" : "gone already", leftover.what);
    } else {
      session.log().error("{}", removed.error().message());
      ++failures;
    }
  }
  if (failures == 0) return {};
  return fail(Error::conflict("clean up", fmt::format("{} could not be removed (named above)", failures)));
}

}  // namespace

void add_cleanup(CLI::App& app, Action& chosen, Face) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "cleanup", "Remove what a dump has placed on the system for a restore that will not come; the images stay");
  add_common_options(*command, options->common);
  add_key_options(*command, options->keys);
  command->callback([options, &chosen] {
    chosen = [options] {
      return run_in_session(options->common, [&](const Session& session) { return clean_up(*options, session); });
    };
  });
}

}  // namespace stasis::cli
