// stasis dump: a running tree becomes a directory of images.

#include <thread>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <functional>
#include <iterator>
#include <optional>

#include "capture/capture.h"
#include "cli/dedup.h"
#include "cli/fault_points.h"
#include "cli/key_options.h"
#include "cli/network_options.h"
#include "cli/post_copy.h"
#include "cli/progress.h"
#include "cli/rounds.h"
#include "cli/session.h"
#include "cli/statistics.h"
#include "cli/subcommands.h"
#include "cli/target.h"
#include "cli/transfer_options.h"
#include "cli/until_exit.h"
#include "resource/codec.h"
#include "resource/traces.h"

namespace stasis::cli {
namespace {

struct Options {
  CommonOptions common;
  DumpOptions dump;
  resource::NetworkPolicy network;
  StorageOptions storage;
  PageServerOptions page_server;
  RoundsOptions rounds;
  bool lazy_pages = false;
  int status_fd = -1;
  bool show_leftovers = false;
};

capture::AfterDump after_dump(const DumpOptions& options) {
  if (options.leave_stopped) return capture::AfterDump::leave_stopped;
  return options.leave_running ? capture::AfterDump::let_run : capture::AfterDump::kill;
}

Result<uint64_t> size_of(const std::string& option, const std::string& text) {
  const uint64_t size = parse_size(text);
  if (size == 0) return fail(Error::invalid("read " + option, "not a size such as 1M or 65536", text));
  return size;
}

Result<capture::CaptureOptions> capture_options(const Options& options) {
  capture::CaptureOptions wanted;
  wanted.root_pid = options.dump.tree;
  wanted.timeout_seconds = options.common.timeout;
  wanted.at_point = fault_point;
  wanted.policy.shell_job = options.dump.shell_job;
  wanted.policy.link_remap = options.dump.link_remap;
  wanted.policy.external_unix = options.dump.external_unix;
  wanted.network = options.network;
  wanted.policy.file_locks = options.dump.file_locks;
  wanted.policy.file_validation = options.dump.file_validation;
  wanted.policy.external = options.dump.external;
  wanted.policy.evasive_devices = options.dump.evasive_devices;
  wanted.policy.force_irmap = options.dump.force_irmap;
  wanted.policy.irmap_scan = options.dump.irmap_scan;
  wanted.policy.leave_running = after_dump(options.dump) != capture::AfterDump::kill;
  wanted.policy.ghost_limit = TRY(size_of("--ghost-limit", options.dump.ghost_limit));
  return wanted;
}

Result<capture::SnapshotOptions> snapshot_options(const DumpOptions& options) {
  capture::SnapshotOptions wanted;
  if (!options.snapshot_memory.empty())
    wanted.memory_limit = TRY(size_of("--snapshot-memory-limit", options.snapshot_memory));
  if (!options.twin_from.empty()) wanted.twin_from = TRY(size_of("--twin-from", options.twin_from));
  return wanted;
}

/// Under load there is nearly always a connection that nobody has accepted yet: a tree that is in such a state goes on
/// for a moment, and is looked at again. The moments grow, to a second in all.
Result<std::unique_ptr<capture::SeizedTree>> capture_at_rest(const capture::CaptureOptions& wanted,
                                                             const Session& session, uint64_t& longest_pause_us) {
  constexpr auto longest_moment = std::chrono::milliseconds(512);
  for (auto moment = std::chrono::milliseconds(1);; moment *= 2) {
    auto tree = TRY(capture::SeizedTree::capture(wanted));
    auto& context = tree->context();
    if (moment > longest_moment || !context.diagnostics.refused_only_for_now()) return tree;
    for (const auto& diagnostic : context.diagnostics.all()) session.log().info("For now: {}", diagnostic.text());
    context.roll_back();
    TRY(tree->release(capture::AfterDump::let_run));
    longest_pause_us = std::max(longest_pause_us, tree->times().frozen_us);
    std::this_thread::sleep_for(moment);
  }
}

/// From "the tree is stopped" to "the checkpoint is valid".
class Checkpointing {
 public:
  Checkpointing(const Session& session, const DumpOptions& options, const capture::SnapshotOptions& wanted,
                bool begins_round, capture::SeizedTree& tree, const image::Directory& images, Rounds& rounds,
                PostCopy* post_copy, DumpStatistics& statistics)
      : session_(session),
        options_(options),
        wanted_(wanted),
        begins_round_(begins_round),
        tree_(tree),
        images_(images),
        rounds_(rounds),
        post_copy_(post_copy),
        statistics_(statistics) {}

  /// The tree is released by the caller, unless it has been let run before the end (see is_live).
  Status write() {
    auto& context = tree_.context();
    TRY(session_.accept(context.diagnostics, "dump the tree", "part of its state cannot be saved"));
    if (begins_round_) {
      TRY(rounds_.begin());
      TRY(tree_.begin_round(rounds_.trackers()));
    }
    TRY(images_.begin());  // not earlier: a dump that is refused leaves the checkpoint alone that may be there
    TRY(rounds_.link(images_));
    fault_point("encoding");
    const auto network = context.kept<resource::NetworkCapture>().facts();
    if (is_live()) TRY(take_snapshot());
    TRY(write_images());
    TRY(complete_page_server(images_));
    fault_point("encoded");
    TRY(session_.run_scripts("post-dump", options_.tree));
    TRY(resource::commit(context.application, images_, network, rounds_.name()));
    fault_point("committed");
    rounds_.complete(session_);
    return post_copy_ == nullptr ? Status{} : post_copy_->serve(tree_, images_, session_);
  }

 private:
  bool is_live() const { return after_dump(options_) == capture::AfterDump::let_run && options_.cow; }

  Status take_snapshot() {
    statistics_.snapshot = TRY(tree_.snapshot(wanted_));
    session_.report(statistics_.snapshot.notes);
    return {};
  }

  Status write_images() {
    Progress progress("dump");
    const uint64_t start = session_.microseconds();
    const auto& application = tree_.context().application;
    resource::EncodeOptions options;
    options.progress = [&](uint64_t done, uint64_t total) { progress.show(done, total); };
    options.parent = rounds_.parent();
    if (is_live())
      options.only_kept_memory_is_left = [this](const resource::EncodeStats& so_far) { return let_run(so_far); };
    if (post_copy_ != nullptr) options.left_out = post_copy_->choose(application);
    auto encoded = resource::encode(application, tree_.memory(), images_, options);
    statistics_.growth = tree_.end_snapshot();
    statistics_.encoded = TRY(std::move(encoded));
    statistics_.write_us = session_.microseconds() - start;
    return {};
  }

  /// What is not written yet is kept for us.
  Status let_run(const resource::EncodeStats& so_far) {
    statistics_.live = true;
    statistics_.encoded_while_stopped = so_far;
    tree_.context().roll_back();
    TRY(tree_.release(capture::AfterDump::let_run));
    fault_point("live");
    return {};
  }

  const Session& session_;
  const DumpOptions& options_;
  const capture::SnapshotOptions& wanted_;
  const bool begins_round_;
  capture::SeizedTree& tree_;
  const image::Directory& images_;
  Rounds& rounds_;
  PostCopy* post_copy_;
  DumpStatistics& statistics_;
};

/// The tree has ended: what it and the dump have left on the system.
void report_leftovers(resource::CaptureContext& context, const resource::Traces& traces, const Session& session,
                      bool show_each) {
  auto leftovers = resource::leftovers(context.application, context.kept<resource::NetworkCapture>().facts());
  std::ranges::move(traces.leftovers(context.application), std::back_inserter(leftovers));
  const auto advice = show_each || leftovers.empty() ? "" : " (--show-leftovers tells)";
  session.log().info("{} left on the system beside the images{}", leftovers.size(), advice);
  if (!show_each) return;
  for (const auto& leftover : leftovers) fmt::print("{}\n    to remove it: {}\n", leftover.what, leftover.removal);
}

/// Of --lazy-pages with others.
Status check_combinations(const Options& options) {
  if (!options.lazy_pages) return {};
  const auto refuse = [](std::string other, std::string advice) {
    return fail(Error::invalid("dump with --lazy-pages", "that does not go with " + other).advise(std::move(advice)));
  };
  if (options.page_server.use)
    return refuse("--page-server", "leave that out: the dump itself listens at --address and --port");
  if (options.dump.leave_running)
    return refuse("--leave-running", "the tree would run twice: leave it stopped (--leave-stopped), or dump without");
  if (options.storage.encrypt && !options.page_server.transfer.tls)
    return refuse("--encrypt without --tls", "pages that are fetched later would go over the network in the clear");
  return {};
}

/// The tree goes on, or stays stopped where it may run elsewhere by now.
void undo(capture::SeizedTree& tree, const PostCopy* post_copy, const Session& session) {
  tree.context().roll_back();
  const bool is_taken_over = post_copy != nullptr && post_copy->is_taken_over();
  const Status released = tree.release(is_taken_over ? capture::AfterDump::leave_stopped : capture::AfterDump::let_run);
  if (!released) session.log().error("{}", released.error().message());
}

Status dump(const Options& options, const Session& session) {
  TRY(check_combinations(options));
  TRY(check_target_and_rights("dump", options.dump.tree));
  auto wanted = TRY(capture_options(options));
  const auto snapshot = TRY(snapshot_options(options.dump));
  auto images = TRY(open_for_writing(options.common.images_dir, options.storage));
  const auto after = after_dump(options.dump);
  auto rounds_options = options.rounds;
  rounds_options.track = options.rounds.track && after != capture::AfterDump::kill;  // else nobody is there to track
  auto rounds = TRY(Rounds::open(session, images, wanted.root_pid, rounds_options));
  wanted.trackers = &rounds.trackers();
  TRY(use_page_server(options.page_server, images, session));
  std::optional<PostCopy> prepared;
  if (options.lazy_pages) prepared = TRY(PostCopy::prepare(options.page_server.transfer, options.status_fd, session));
  PostCopy* post_copy = prepared ? &*prepared : nullptr;
  TRY(session.run_scripts("pre-dump", wanted.root_pid));

  DumpStatistics statistics;
  auto tree = TRY(capture_at_rest(wanted, session, statistics.earlier_pause_us));
  const Status written =
      Checkpointing(session, options.dump, snapshot, rounds_options.track, *tree, images, rounds, post_copy, statistics)
          .write();
  if (!written) {
    undo(*tree, post_copy, session);
    return written;
  }
  // A tree that lives on keeps no names that were made for the checkpoint (criu does the same): such a checkpoint can
  // be restored only where somebody else has kept its files.
  if (after == capture::AfterDump::let_run) tree->context().roll_back();
  std::optional<resource::Traces> traces;
  const bool is_heard = options.show_leftovers || session.log().should_log(spdlog::level::info);
  if (after == capture::AfterDump::kill && is_heard) traces.emplace(tree->context());
  TRY(tree->release(after));
  statistics.times = tree->times();
  if (statistics.live) log_snapshot(session, statistics);
  if (traces) report_leftovers(tree->context(), *traces, session, options.show_leftovers);
  until_exit(std::move(tree));
  write_dump_statistics(session, statistics);
  // Not earlier: a dump that fails needs its parents whole. A page server has its own --auto-dedup.
  if (options.storage.auto_dedup && !options.page_server.use) release_superseded_of(images, session);
  session.log().info("Dumping finished successfully");
  return {};
}

}  // namespace

void add_dump(CLI::App& app, Action& chosen, Face) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("dump", "Save a process and all its descendants");
  add_target_option(*command, options->dump.tree);
  add_common_options(*command, options->common);
  add_switch(*command, "-R,--leave-running", options->dump.leave_running, "Let the tree run on after the dump");
  add_switch(*command, "--cow", options->dump.cow,
             "With --leave-running: let the tree run on while copies of its memory are written (default)");
  command
      ->add_option("--snapshot-memory-limit", options->dump.snapshot_memory,
                   "Memory that these may take; past it the tree is stopped again (default: half of what is available)")
      ->type_name("SIZE");
  command->add_option("--twin-from", options->dump.twin_from)->type_name("SIZE")->group("");
  add_switch(*command, "-s,--leave-stopped", options->dump.leave_stopped, "Leave the tree stopped after the dump");
  add_switch(*command, "-j,--shell-job", options->dump.shell_job,
             "The session and terminal belong to a shell outside the tree");
  add_switch(*command, "--link-remap", options->dump.link_remap,
             "Allow temporary links to files that are open, unlinked here, but linked elsewhere");
  command
      ->add_option_function<std::vector<std::string>>(
          "-x,--ext-unix-sk",
          [options](const std::vector<std::string>& inodes) {
            options->dump.external_unix = true;
            for (const auto& inode : inodes) options->dump.external.push_back(fmt::format("unix[{}]", inode));
          },
          "Allow datagram sockets connected to named ones outside of the tree, and these sockets in any case")
      ->type_name("INODE,…")
      ->delimiter(',')
      ->expected(0, 1)
      ->allow_extra_args(false);
  add_network_options_of_dump(*command, options->network);
  add_switch(*command, "-l,--file-locks", options->dump.file_locks,
             "Allow locks and leases of files, which others may take while the tree is gone");
  command
      ->add_option("--ghost-limit", options->dump.ghost_limit,
                   "Largest unlinked file stored in the images (default 1M)")
      ->type_name("SIZE");
  command
      ->add_option("--file-validation", options->dump.file_validation,
                   "How changed files are recognised: filesize, buildid or checksum")
      ->check(CLI::IsMember({"filesize", "buildid", "checksum"}));
  command->add_option("--external", options->dump.external, "A resource that is not dumped but given again at restore")
      ->type_name("RES")
      ->allow_extra_args(false);
  add_switch(*command, "--evasive-devices", options->dump.evasive_devices,
             "Take any path of a device that is not reached by its own");
  add_switch(*command, "--force-irmap", options->dump.force_irmap,
             "Look for watched files by their inodes where they are not found by their handles");
  command->add_option("--irmap-scan-path", options->dump.irmap_scan, "Where --force-irmap looks first")
      ->type_name("DIR")
      ->allow_extra_args(false);
  add_storage_options(*command, options->storage);
  add_page_server_options(*command, options->page_server);
  add_switch(*command, "--lazy-pages", options->lazy_pages,
             "Leave out memory that can come later, and give it to `lazy-pages --page-server` (at --address, --port)");
  add_status_fd(*command, options->status_fd, "that can come (--lazy-pages)");
  add_switch(*command, "--show-leftovers", options->show_leftovers,
             "Say what remains on the system when the tree has ended, and how it is removed");
  add_rounds_options(*command, options->rounds);
  command->callback([options, &chosen] {
    if (options->status_fd >= 0 && !options->lazy_pages)
      throw CLI::ValidationError("--status-fd is refused: without --lazy-pages, wait for the end of stasis instead");
    chosen = [options] {
      return run_in_session(options->common, [&](const Session& session) { return dump(*options, session); });
    };
  });
}

}  // namespace stasis::cli
