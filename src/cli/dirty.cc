// stasis dirty: how many pages a tree writes in how much time. It is stopped once, when the tracking begins; counting
// and protecting anew go on beside it. Nothing remains of the tracking when the command ends, however it ends.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <map>
#include <set>
#include <thread>

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "capture/round.h"
#include "cli/dirty_curve.h"
#include "cli/fault_points.h"
#include "cli/progress.h"
#include "cli/session.h"
#include "cli/subcommands.h"
#include "cli/target.h"
#include "kernel/descriptor_limit.h"
#include "kernel/proc.h"
#include "memory/keeper.h"
#include "memory/pages.h"
#include "resource/memory_runs.h"

namespace stasis::cli {
namespace {

struct Options {
  CommonOptions common;
  pid_t tree = 0;
  std::vector<uint64_t> intervals_ms = {10, 20, 50, 100, 200, 500, 1000};
  unsigned rounds = 3;
  bool json = false, plot = false, stop = false;
};

/// What a round would have to copy: own pages less those that have not changed.
uint64_t changed_pages(const capture::RoundMemory& memory) {
  return (memory::total_size(memory.runs) - memory::total_size(memory.unchanged)) / page_size;
}

class Measurement {
 public:
  Measurement(pid_t root, std::vector<capture::RoundMemory> memories, memory::Trackers trackers)
      : root_(root), memories_(std::move(memories)), trackers_(std::move(trackers)) {
    for (const auto& tracker : trackers_.all()) tracker_of_[tracker->suffix] = &tracker->descriptor;
    for (const pid_t pid : kernel::list_descendants(root_)) first_.insert(pid);
  }

  Result<DirtySample> sample(uint64_t interval_ms) {
    using Clock = std::chrono::steady_clock;
    TRY(for_each_living([&](capture::RoundMemory& memory) { return protect(memory); }));
    const auto begin = Clock::now();
    std::this_thread::sleep_for(std::chrono::milliseconds(interval_ms));
    DirtySample sample;
    sample.microseconds =
        static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin).count());
    TRY(for_each_living([&](capture::RoundMemory& memory) -> Status {
      TRY(capture::look_at(memory));
      sample.pages += changed_pages(memory);
      return {};
    }));
    for (const pid_t pid : kernel::list_descendants(root_)) {
      if (!first_.contains(pid)) sample.pages += pages_of_new_process(pid);
    }
    return sample;
  }

  size_t address_spaces() const { return memories_.size(); }

 private:
  /// Those that have ended meanwhile are forgotten.
  template <typename Step>
  Status for_each_living(Step step) {
    for (auto memory = memories_.begin(); memory != memories_.end();) {
      const Status done = step(*memory);
      if (!done && done.error().code() != ErrorCode::gone) return done;
      memory = done ? memory + 1 : memories_.erase(memory);
    }
    if (memories_.empty()) return fail(Error::gone("measure the tree", fmt::format("task {}", root_)));
    return {};
  }

  Status protect(capture::RoundMemory& memory) {
    TRY(capture::look_at(memory));
    return resource::protect(*tracker_of_.at(memory.suffix), memory.witness, memory.mappings, memory.unchanged);
  }

  /// Nobody tracks it yet: the next round would store all of it.
  static uint64_t pages_of_new_process(pid_t pid) {
    capture::RoundMemory memory;
    memory.witness = pid;
    return capture::look_at(memory) ? changed_pages(memory) : 0;
  }

  pid_t root_;
  std::vector<capture::RoundMemory> memories_;
  memory::Trackers trackers_;
  std::map<std::string, const kernel::Userfaultfd*> tracker_of_;
  std::set<pid_t> first_;
};

unsigned width_of_output() {
  if (const auto width = terminal_width(STDOUT_FILENO)) return *width;
  const char* columns = std::getenv("COLUMNS");
  const int told = columns != nullptr ? std::atoi(columns) : 0;
  constexpr unsigned usual = 80;
  return told > 0 ? static_cast<unsigned>(told) : usual;
}

Status stop(const Options& options) {
  TRY(check_target("end the tracking of", options.tree));
  auto keeper = TRY(memory::Keeper::find(options.tree));
  if (!keeper) {
    fmt::print("Nobody tracks task {}\n", options.tree);
    return {};
  }
  TRY(keeper->stop());
  fmt::print("The tracking of task {} has ended: the next dump of it stores everything\n", options.tree);
  return {};
}

Status measure(const Options& options, const Session& session) {
  TRY(check_target("measure", options.tree));
  if (TRY(memory::Keeper::find(options.tree))) {
    return fail(
        Error::conflict("measure the tree", "it is tracked for a dump to come", fmt::format("task {}", options.tree))
            .advise(
                fmt::format("`stasis dirty --stop -t {}` ends that: the next dump stores everything", options.tree)));
  }
  kernel::raise_descriptor_limit();
  memory::Trackers trackers;
  auto round = TRY(capture::hold_round({options.tree, options.common.timeout, fault_point, {}}, trackers));
  TRY(session.accept(round.diagnostics, "measure the tree", "part of it cannot be looked at"));
  Measurement measurement(options.tree, std::move(round.memories), std::move(trackers));
  const size_t address_spaces = measurement.address_spaces();
  std::vector<DirtyPoint> points;
  for (const uint64_t interval : options.intervals_ms) {
    auto& point = points.emplace_back(DirtyPoint{interval, {}});
    for (unsigned count = 0; count < options.rounds; ++count)
      point.samples.push_back(TRY(measurement.sample(interval)));
  }
  if (options.json) {
    fmt::print("{}", dirty_json(points, options.tree, address_spaces));
  } else {
    fmt::print("{}", options.plot ? dirty_plot(points, width_of_output()) : dirty_table(points));
  }
  return {};
}

}  // namespace

void add_dirty(CLI::App& app, Action& chosen, Face) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("dirty", "Measure how many pages a tree writes in how much time");
  add_target_option(*command, options->tree);
  add_log_options(*command, options->common);
  command->add_option("--timeout", options->common.timeout, "Seconds after which stopping the tree is given up")
      ->type_name("SECONDS");
  constexpr uint64_t longest = 3'600'000;
  command->add_option("--intervals", options->intervals_ms, "Lengths of intervals, in milliseconds")
      ->delimiter(',')
      ->type_name("MS,…")
      ->check(CLI::Range(uint64_t{1}, longest));
  command->add_option("--rounds", options->rounds, "How often each is measured")->check(CLI::Range(1u, 10'000u));
  auto* json = command->add_flag("--json", options->json, "Print all measurements as JSON");
  command->add_flag("--plot", options->plot, "Draw the curve in the width of the terminal")->excludes(json);
  command->add_flag("--stop", options->stop, "End the tracking that pre-dump or dump --track-mem has begun instead");
  command->callback([options, &chosen] {
    chosen = [options] {
      return run_in_session(options->common, [&](const Session& session) {
        return options->stop ? stop(*options) : measure(*options, session);
      });
    };
  });
}

}  // namespace stasis::cli
