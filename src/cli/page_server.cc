// stasis page-server: stores the pages of a dump that is made elsewhere, or gives those of a checkpoint to a restore
// that is.
#include <unistd.h>

#include <CLI/CLI.hpp>

#include "cli/background.h"
#include "cli/dedup.h"
#include "cli/key_options.h"
#include "cli/session.h"
#include "cli/subcommands.h"
#include "cli/transfer_options.h"
#include "memory/increments.h"
#include "memory/page_receiver.h"
#include "memory/page_sender.h"

namespace stasis::cli {
namespace {

struct Options {
  CommonOptions common;
  TransferOptions transfer;
  std::string previous;
  KeyOptions keys;
  bool daemon = false, auto_dedup = false, lazy = false;
  int status_fd = -1;
};

/// Goes on in a process without a terminal; the one that was called returns its pid. It inherits what listens, so that
/// clients can come as soon as that one has ended.
Result<pid_t> detach() {
  const pid_t child = fork();
  if (child < 0) return fail_errno("fork");
  if (child > 0) return child;
  TRY(leave_terminal());
  return 0;
}

Status store(memory::Stream& stream, const Options& options, const Session& session, const image::Directory& images) {
  const auto received = TRY(memory::PageReceiver(images).receive(stream));
  session.log().info("{} memories with {} KiB of pages are stored", received.memories, received.bytes >> 10);
  end_connection(stream, options.transfer, session);
  if (!options.auto_dedup) return {};
  if (!received.sealed) return release_superseded(images, session);
  session.log().warn(
      "--auto-dedup has released nothing: which pages encrypted images need, only who has a key can tell");
  return {};
}

Status give(memory::Stream& stream, const Options& options, const Session& session, const image::Directory& images) {
  TRY(memory::PageSender(images).serve(stream));
  end_connection(stream, options.transfer, session);
  return {};
}

Status prepare_store(const Options& options, const image::Directory& images) {
  TRY(memory::PageReceiver::clear(images));
  TRY(memory::link_parent(images, options.previous));
  if (!options.previous.empty()) TRY_IN("use --prev-images-dir", memory::ParentImages::linked(images));
  return {};
}

Status page_server(const Options& options, const Session& session) {
  const auto& path = options.common.images_dir;
  const auto images = options.lazy ? TRY(open_images(path, options.keys)) : TRY(image::Directory::open(path));
  auto host = TRY(Host::open(options.transfer, session));
  if (!options.lazy) TRY(prepare_store(options, images));
  session.log().flush();  // where it listens; and what is not written would be written by both processes
  const pid_t child = options.daemon ? TRY(detach()) : 0;
  if (child > 0) return write_pidfile(session, child);
  if (!options.daemon) TRY(write_pidfile(session, getpid()));
  TRY(say_ready(session, options.status_fd));
  const auto stream = TRY(host.await(session));
  return options.lazy ? give(*stream, options, session, images) : store(*stream, options, session, images);
}

}  // namespace

void add_page_server(CLI::App& app, Action& chosen, Face) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "page-server", "Store the pages of a dump that is made elsewhere, or give those of a checkpoint");
  add_common_options(*command, options->common);
  add_transfer_options(*command, options->transfer);
  command
      ->add_option("--prev-images-dir", options->previous,
                   "What the round before has sent here, relative to the images directory")
      ->type_name("DIR");
  add_switch(*command, "--auto-dedup", options->auto_dedup,
             "Release pages in the parent images that have come anew (stasis dedup)");
  add_switch(*command, "--lazy-pages", options->lazy,
             "Give the pages of the checkpoint in the images directory to a restore that asks for them");
  add_key_options(*command, options->keys);
  auto* daemon = add_switch(*command, "--daemon", options->daemon, "Go on in the background once clients can come");
  add_status_fd(*command, options->status_fd, "clients can come")->excludes(daemon);
  command->callback([options, &chosen] {
    chosen = [options] {
      return run_in_session(options->common, [&](const Session& session) { return page_server(*options, session); });
    };
  });
}

}  // namespace stasis::cli
