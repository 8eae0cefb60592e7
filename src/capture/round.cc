#include "capture/round.h"

#include <map>

#include <fmt/format.h>

#include "base/parallel.h"
#include "base/patience.h"
#include "capture/freezer.h"
#include "capture/release.h"
#include "capture/trackers.h"
#include "resource/memory_mappings.h"
#include "resource/memory_runs.h"

namespace stasis::capture {
namespace {

class RoundTree {
 public:
  RoundTree(const RoundOptions& options, memory::Trackers& trackers) : options_(options), trackers_(trackers) {
    if (!options_.at_point) options_.at_point = [](std::string_view) {};
    context_.policy.shell_job = true;  // whose session it is does not matter here
  }
  ~RoundTree() { (void)release(processes_, AfterDump::let_run); }

  Result<Round> hold() {
    const auto start = Clock::now();
    TRY(stop(start));
    if (!context_.diagnostics.refused()) {
      TRY(look());
      TRY(recognise());
      if (options_.before_protecting) TRY(options_.before_protecting());
      options_.at_point("round-begins");
      TRY(protect());
      options_.at_point("protected");
    }
    round_.diagnostics = std::move(context_.diagnostics);
    Status released = release(processes_, AfterDump::let_run);
    processes_.clear();
    round_.times.frozen_us = microseconds(Clock::now() - start);
    options_.at_point("released");
    TRY(released);
    return std::move(round_);
  }

 private:
  Status stop(Clock::time_point start) {
    deadline_ = deadline_after(start, options_.timeout_seconds);
    Freezer freezer(context_.diagnostics, options_.at_point, deadline_);
    auto frozen = TRY(freezer.freeze(options_.root_pid));
    round_.times.freezing_us = microseconds(Clock::now() - start);
    if (frozen.front().refused) return {};
    auto looks = look_at(frozen);
    processes_ = TRY_IN("look at the tree", walk(std::move(frozen), std::move(looks), context_));
    return find_sharing(processes_, context_);
  }

  struct Space {
    ObjectId id;
    std::optional<uint64_t> tracked;
    const memory::Tracker* tracker = nullptr;
  };

  Status look() {
    std::map<ObjectId, pid_t> known;
    for (auto& process : processes_) {
      if (process.frozen.zombie) continue;
      const auto& task = *context_.application.find(process.pid);
      if (!known.emplace(task.address_space, process.view.witness()).second) continue;
      spaces_.push_back({task.address_space, {}});
      round_.memories.push_back({std::to_string(task.pid.value), process.view.witness(), {}, {}, {}});
    }
    return parallel_for(spaces_.size(), [&](size_t index) -> Status {
      spaces_[index].tracked = TRY(look_at(round_.memories[index]));
      return {};
    });
  }

  Status recognise() {
    for (size_t index = 0; index < spaces_.size(); ++index) {
      auto& space = spaces_[index];
      auto& memory = round_.memories[index];
      space.tracker =
          TRY(resource::recognise(trackers_, memory.witness, space.tracked, memory.suffix, memory.unchanged));
    }
    return {};
  }

  Status protect() {
    std::vector<RoundSpace> spaces;
    for (size_t index = 0; index < spaces_.size(); ++index) {
      auto& memory = round_.memories[index];
      spaces.push_back(
          {spaces_[index].id, memory.suffix, spaces_[index].tracker, [&memory](const kernel::Userfaultfd& tracker) {
             return resource::protect(tracker, memory.witness, memory.mappings, memory.unchanged);
           }});
    }
    return begin_round(processes_, context_.application, spaces, trackers_, options_.at_point, deadline_ + patience);
  }

  RoundOptions options_;
  memory::Trackers& trackers_;
  resource::CaptureContext context_;
  std::vector<LiveProcess> processes_;
  std::vector<Space> spaces_;  ///< index as in round_.memories
  Round round_;
  Clock::time_point deadline_;
};

}  // namespace

Result<std::optional<uint64_t>> look_at(RoundMemory& memory) {
  std::vector<model::Mapping> mappings;
  for (const auto& vma : TRY(kernel::read_maps(memory.witness))) {
    const auto found = resource::classify(vma);
    if (found.kind != resource::VmaKind::unsupported) mappings.push_back(resource::mapping_of(vma, found.kind));
  }
  auto own = TRY(resource::find_own_pages(memory.witness, mappings));
  memory.mappings = resource::mappings_with_own_pages(mappings, own.runs);
  memory.runs = std::move(own.runs);
  memory.unchanged = std::move(own.unchanged);
  return own.tracked;
}

Status begin_round(std::vector<LiveProcess>& processes, const model::Application& application,
                   const std::vector<RoundSpace>& spaces, memory::Trackers& trackers, const AtPoint& at_point,
                   Clock::time_point deadline) {
  std::vector<ObjectId> without;
  for (const auto& space : spaces) {
    if (space.tracker == nullptr) without.push_back(space.id);
  }
  auto made = TRY_IN("begin to track memory", make_userfaultfds(processes, application, without, at_point, deadline));
  std::vector<std::pair<const memory::Tracker*, std::string>> used;
  for (const auto& space : spaces) {
    const auto* tracker = space.tracker;
    if (tracker == nullptr) tracker = trackers.add({{}, std::move(made.at(space.id))});
    TRY_IN("track memory " + space.suffix, space.protect(tracker->descriptor));
    used.emplace_back(tracker, space.suffix);
  }
  trackers.rename(used);
  return {};
}

Result<Round> hold_round(const RoundOptions& options, memory::Trackers& trackers) {
  return RoundTree(options, trackers).hold();
}

}  // namespace stasis::capture
