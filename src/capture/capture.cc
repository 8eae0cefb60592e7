// The order of a capture.
#include "capture/capture.h"

#include <optional>

#include <fmt/format.h>

#include "base/patience.h"
#include "capture/early_facts.h"
#include "capture/freezer.h"
#include "capture/growth_watch.h"
#include "capture/interview.h"
#include "capture/release.h"
#include "capture/round.h"
#include "capture/sleeps.h"
#include "capture/twins.h"
#include "capture/walk.h"
#include "kernel/available_memory.h"
#include "kernel/mapping_flags.h"
#include "resource/address_space.h"
#include "resource/descriptors.h"
#include "resource/registry.h"
#include "resource/signals.h"
#include "resource/timers.h"

namespace stasis::capture {
namespace {

constexpr auto patience_for_each = std::chrono::milliseconds(20);  ///< thread, when all are asked something in turn

class LiveTree final : public SeizedTree {
 public:
  explicit LiveTree(const CaptureOptions& options) : options_(options) {
    context_.policy = options_.policy;
    network().policy = options_.network;
    if (!options_.at_point) options_.at_point = [](std::string_view) {};
    if (options_.trackers != nullptr) memory_.track_by(*options_.trackers);
  }
  ~LiveTree() override {
    if (!released_) network().survive();
    (void)capture::release(processes_, AfterDump::let_run);
  }

  Status assemble() {
    const auto flags = prepare_mapping_flags();
    const auto start = Clock::now();
    const auto deadline = deadline_after(start, options_.timeout_seconds);
    frozen_at_ = start;
    Freezer freezer(context_.diagnostics, options_.at_point, deadline);
    auto frozen = TRY(freezer.freeze(options_.root_pid));
    times_.freezing_us = microseconds(Clock::now() - start);
    // Nothing of the tree runs from here on.
    if (frozen.front().refused) return {};  // and said why: without its root nothing of a tree can be looked at

    auto looks = look_at(frozen);
    EarlyFacts facts(frozen, flags ? &*flags : nullptr);  // read while this thread reads registers
    processes_ = TRY_IN("look at the tree", walk(std::move(frozen), std::move(looks), context_));
    compare_threads(processes_);
    look_at_namespaces(processes_, context_);
    TRY_IN("compare the tasks' shared objects", find_sharing(processes_, context_));
    options_.at_point("walked");
    // A tree that is not wholly ours cannot be looked at further.
    if (context_.diagnostics.refused()) return {};

    TRY_IN("find out how long the tasks sleep", measure_sleeps(processes_, context_, options_.at_point, turn_of_all()));
    TRY_IN("find the pages of the tree", memory_.look_ahead(witnesses()));  // while the facts are read
    facts.hand_out(processes_);
    TRY(look_from_outside());
    options_.at_point("looked");
    if (context_.diagnostics.refused()) return {};
    Interview interview(processes_, context_, options_.at_point, turn_of_all());
    const auto asked_at = Clock::now();
    TRY_IN("ask the tasks", interview.hold(resource::task_rooms()));
    TRY_IN("look at the signals of the tasks", look_at_signals(asked_at));
    check_parent_threads(context_);
    options_.at_point("captured");
    return {};
  }

  resource::CaptureContext& context() override { return context_; }
  resource::ApplicationMemory& memory() override { return memory_; }

  Status begin_round(memory::Trackers& trackers) override {
    std::vector<RoundSpace> spaces;
    for (const auto& [id, owner] : resource::address_space_owners(context_.application)) {
      spaces.push_back(
          {id, std::to_string(owner.value), memory_.tracker_of(id),
           [this, id](const kernel::Userfaultfd& tracker) { return memory_.protect(context_, id, tracker); }});
    }
    return capture::begin_round(processes_, context_.application, spaces, trackers, options_.at_point, turn_of_all());
  }

  Result<SnapshotReport> snapshot(const SnapshotOptions& wanted) override {
    limit_ = wanted.memory_limit != 0 ? wanted.memory_limit : TRY(kernel::available_memory(options_.root_pid)) / 2;
    TwinMaker maker(processes_, context_, memory_, options_.at_point, turn_of_all());
    auto report = TRY_IN("take a snapshot of the memory", maker.make(limit_, wanted.twin_from));
    report.memory_limit = limit_;
    limit_ -= report.taken;
    twins_ = maker.take_twins();
    return report;
  }
  SnapshotGrowth end_snapshot() override { return watch_ ? watch_->finish() : SnapshotGrowth{}; }

  void stop_if_we_die() override { stop_when_let_go(processes_); }

  CaptureTimes times() const override {
    CaptureTimes times = times_;
    times.frozen_us = microseconds((released_ ? released_at_ : Clock::now()) - frozen_at_);
    return times;
  }

  Status release(AfterDump after) override {
    if (released_) return {};
    options_.at_point("releasing");
    if (after != AfterDump::kill) network().survive();
    if (after == AfterDump::let_run) let_go_of_all_but_the_application();
    released_at_ = Clock::now();  // who is killed takes its time to free its memory, but does not stand still for it
    auto status = capture::release(processes_, after, options_.at_point);
    if (after == AfterDump::kill && status) status = network().die();
    processes_.clear();
    released_ = true;
    if (after != AfterDump::kill) released_at_ = Clock::now();
    if (after == AfterDump::let_run && !twins_.empty()) watch_.emplace(std::move(twins_), limit_, options_.at_point);
    options_.at_point("released");
    return status;
  }

 private:
  /// Before anybody stands still. Worth it where reading smaps would take longer.
  std::optional<kernel::MappingFlags> prepare_mapping_flags() const {
    constexpr uint64_t worth_it = 128ull << 20;
    if (!kernel::has_resident(options_.root_pid, worth_it)) return std::nullopt;
    auto flags = kernel::MappingFlags::open();  // not to be had everywhere
    return flags ? std::optional(std::move(*flags)) : std::nullopt;
  }

  resource::NetworkCapture& network() { return context_.kept<resource::NetworkCapture>(); }

  /// Before the tree runs on: nobody may take us for a peer or a reader because we hold what its tasks have.
  void let_go_of_all_but_the_application() {
    resource::CaptureContext rest;
    rest.application = std::move(context_.application);
    context_ = std::move(rest);
    memory_.let_go();
  }

  /// When all threads have surely had their turn.
  Clock::time_point turn_of_all() const {
    size_t threads = 0;
    for (const auto& process : processes_) threads += process.frozen.threads.size();
    return Clock::now() + patience + threads * patience_for_each;
  }

  /// Through whom each address space is reached.
  std::map<ObjectId, pid_t> witnesses() const {
    std::map<ObjectId, pid_t> found;
    for (const auto& process : processes_) {
      if (!process.frozen.zombie)
        found.emplace(context_.application.find(process.pid)->address_space, process.view.witness());
    }
    return found;
  }

  /// Everything that the tasks need not be asked for: files, memory, and the rooms' own readings.
  Status look_from_outside() {
    std::vector<resource::DescriptorHolder> holders;
    for (auto& process : processes_) {
      if (!process.frozen.zombie) holders.push_back({&process.view, context_.application.find(process.pid)});
    }
    TRY_IN("capture open files", resource::capture_descriptors(context_, holders));
    for (const auto& [view, task] : holders) {
      TRY_IN(fmt::format("capture the memory of task {}", view->host_pid), memory_.capture(context_, *view, *task));
      for (const auto* room : resource::task_rooms()) {
        TRY_IN(fmt::format("capture task {}", view->host_pid), room->capture(context_, *view, *task));
      }
    }
    return memory_.finish(context_);
  }

  Status look_at_signals(Clock::time_point asked_at) {
    for (const auto& process : processes_) {
      if (process.frozen.zombie) continue;
      auto& task = *context_.application.find(process.pid);
      TRY(resource::capture_pending_signals(process.view, task));
      resource::forget_expired(Clock::now() - asked_at, task);
    }
    end_interrupted_calls(processes_, context_);
    return {};
  }

  CaptureOptions options_;
  resource::CaptureContext context_;
  resource::TreeMemory memory_;
  std::vector<LiveProcess> processes_;
  CaptureTimes times_;
  Clock::time_point frozen_at_, released_at_;
  bool released_ = false;
  uint64_t limit_ = 0;  ///< of the memory that the snapshot may take from here on
  std::vector<Twin> twins_;
  std::optional<GrowthWatch> watch_;
};

}  // namespace

Result<std::unique_ptr<SeizedTree>> SeizedTree::capture(const CaptureOptions& options) {
  auto tree = std::make_unique<LiveTree>(options);
  auto assembled = tree->assemble();
  if (!assembled) {
    tree->context().roll_back();
    return fail(std::move(assembled).error());
  }
  return tree;
}

}  // namespace stasis::capture
