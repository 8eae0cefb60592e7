// stasis pre-dump: the memory of a tree, copied while it runs. The tree is stopped for as long as it takes to
// write-protect its pages; what it writes afterwards is left to the next round.
#include <CLI/CLI.hpp>

#include "capture/round.h"
#include "cli/dedup.h"
#include "cli/fault_points.h"
#include "cli/key_options.h"
#include "cli/progress.h"
#include "cli/rounds.h"
#include "cli/session.h"
#include "cli/statistics.h"
#include "cli/subcommands.h"
#include "cli/target.h"
#include "cli/transfer_options.h"
#include "memory/running_pages.h"
#include "resource/inventory.h"

namespace stasis::cli {
namespace {

struct Options {
  CommonOptions common;
  RoundsOptions rounds;
  PageServerOptions page_server;
  pid_t tree = 0;
  std::string mode = "splice";
  StorageOptions storage;
};

/// criu's numbers, in the inventory.
constexpr uint32_t number_of(std::string_view mode) { return mode == "read" ? 2 : 1; }

/// Copies what has been written since the round before. The tree runs.
Status copy(const image::Directory& images, Rounds& rounds, capture::RoundMemory& memory, uint32_t pages_id,
            resource::EncodeStats& statistics) {
  for (auto& run : memory.runs) run.keep_zeros = false;  // see memory::RunningPages
  memory::Increment increment{std::move(memory.runs), {}};
  if (rounds.parent() != nullptr) {
    if (const auto* stored = TRY(rounds.parent()->stored(memory.suffix)))
      increment = memory::increment_of(increment.changed, memory.unchanged, *stored);
  }
  memory::RunningPages source(memory.witness);
  const auto written =
      TRY(memory::write_pages(images, memory.suffix, pages_id, increment.changed, source, increment.in_parent));
  const uint64_t in_parent = memory::total_size(increment.in_parent) / page_size;
  statistics.pages_in_parent += in_parent;
  statistics.pages_scanned += memory::total_size(increment.changed) / page_size + in_parent;
  statistics.pages_written += written.pages_written;
  statistics.zero_pages_skipped += written.zero_pages_skipped;
  return {};
}

Status pre_dump(const Options& options, const Session& session) {
  TRY(check_target("pre-dump", options.tree));
  auto images = TRY(open_for_writing(options.common.images_dir, options.storage));
  auto rounds = TRY(Rounds::open(session, images, options.tree, options.rounds));
  TRY(use_page_server(options.page_server, images, session));
  TRY(session.run_scripts("pre-dump", options.tree));
  auto round = TRY(capture::hold_round(
      {options.tree, options.common.timeout, fault_point, [&] { return rounds.begin(); }}, rounds.trackers()));
  TRY(session.accept(round.diagnostics, "pre-dump the tree", "part of it cannot be looked at"));

  DumpStatistics statistics;
  statistics.times = round.times;
  const uint64_t start = session.microseconds();
  TRY(images.begin());
  TRY(rounds.link(images));
  for (uint32_t index = 0; index < round.memories.size(); ++index) {
    auto& memory = round.memories[index];
    TRY_IN("save memory " + memory.suffix, copy(images, rounds, memory, index + 1, statistics.encoded));
    fault_point("copied");
  }
  TRY(complete_page_server(images));
  statistics.write_us = session.microseconds() - start;
  TRY(resource::commit_pre_dump(images, number_of(options.mode), rounds.name()));
  fault_point("committed");
  rounds.complete(session);
  write_dump_statistics(session, statistics);
  if (options.storage.auto_dedup && !options.page_server.use) release_superseded_of(images, session);
  session.log().info("Pre-dumping finished successfully");
  return {};
}

}  // namespace

void add_pre_dump(CLI::App& app, Action& chosen, Face) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("pre-dump", "Save the memory of a tree while it runs, for a dump to come");
  add_target_option(*command, options->tree);
  add_common_options(*command, options->common);
  add_rounds_options(*command, options->rounds);
  add_page_server_options(*command, options->page_server);
  command
      ->add_option("--pre-dump-mode", options->mode,
                   "splice or read: accepted as criu does; pages are always read while the tree runs")
      ->check(CLI::IsMember({"splice", "read"}));
  add_storage_options(*command, options->storage);
  command->callback([options, &chosen] {
    chosen = [options] {
      options->rounds.track = true;
      return run_in_session(options->common, [&](const Session& session) { return pre_dump(*options, session); });
    };
  });
}

}  // namespace stasis::cli
