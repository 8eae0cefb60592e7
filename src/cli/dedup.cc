// stasis dedup: what newer images have is released in their parents.
#include "cli/dedup.h"

#include <CLI/CLI.hpp>

#include "cli/key_options.h"
#include "cli/session.h"
#include "cli/subcommands.h"
#include "memory/dedup.h"

namespace stasis::cli {
namespace {

struct Options {
  CommonOptions common;
  KeyOptions keys;
};

Status dedup(const Options& options, const Session& session) {
  const auto images = TRY(open_images(options.common.images_dir, options.keys));
  return release_superseded(images, session);
}

}  // namespace

Status release_superseded(const image::Directory& images, const Session& session) {
  const auto stats = TRY(memory::release_superseded(images));
  session.log().info("{} KiB released in {} pages files of parents", stats.bytes >> 10, stats.files);
  return {};
}

void release_superseded_of(const image::Directory& written, const Session& session) {
  if (!written.has("parent")) return;
  // As readers see them: with keys and a manifest.
  const auto images = written.open_related(written.path());
  const Status released = images ? release_superseded(*images, session) : fail(images.error());
  if (!released) session.log().warn("--auto-dedup has not released what is superseded: {}", released.error().message());
}

void add_dedup(CLI::App& app, Action& chosen, Face) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "dedup", "Release pages in parent images that newer images have; the parents alone are no checkpoints any more");
  add_common_options(*command, options->common);
  add_key_options(*command, options->keys);
  command->callback([options, &chosen] {
    chosen = [options] {
      return run_in_session(options->common, [&](const Session& session) { return dedup(*options, session); });
    };
  });
}

}  // namespace stasis::cli
