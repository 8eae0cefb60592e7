#include "capture/growth_watch.h"

#include <algorithm>
#include <chrono>

#include <fmt/format.h>

#include "base/patience.h"
#include "kernel/available_memory.h"
#include "kernel/process.h"

namespace stasis::capture {
namespace {

constexpr auto interval = std::chrono::milliseconds(10);
/// Of what the system had at the beginning this part is left to others.
constexpr uint64_t reserved_part = 8;
/// Pages of each twin that are looked at in a round, in stretches of consecutive ones: a fraction of a millisecond,
/// whatever the size of the memory.
constexpr uint64_t pages_of_round = 16384, stretch = 256;

bool is_running(const Twin& twin) {
  const auto stat = kernel::read_stat(twin.host_pid);
  return stat && stat->start_time == twin.start_time && !(stat->is_dead() && !stat->has_left_threads());
}

/// How many bytes of a twin nobody else has any more: its owner has changed or given back his own. All pages of small
/// memories are counted; of larger ones a part, in each round others.
uint64_t own_bytes(const memory::HeldMemory& memory, const std::vector<model::PageRun>& runs, uint64_t round) {
  const uint64_t total = memory::total_size(runs) / page_size;
  const uint64_t step = std::max(stretch, total / (pages_of_round / stretch));
  constexpr uint64_t odd = 40503;  // spreads the places that are looked at in consecutive rounds
  uint64_t next = step == stretch ? 0 : round * odd % step;  // counted in pages of all runs
  uint64_t before = 0, seen = 0, own = 0;
  for (const auto& run : runs) {
    const uint64_t pages = run.range.size() / page_size;
    while (next < before + pages) {
      const uint64_t begin = run.range.begin + (next - before) * page_size;
      const AddressRange part{begin, std::min(begin + stretch * page_size, run.range.end)};
      const auto words = kernel::read_pagemap(memory.pagemap(), part);
      if (!words) return 0;
      own += static_cast<uint64_t>(
          std::ranges::count_if(*words, [](uint64_t w) { return w & kernel::word_exclusively_mapped; }));
      seen += words->size();
      // A small memory is counted in full: the rest of a stretch that its run was too short for belongs to the next.
      next += step == stretch ? words->size() : step;
    }
    before += pages;
  }
  return seen == 0 ? 0
                   : static_cast<uint64_t>(static_cast<double>(own) / static_cast<double>(seen) *
                                           static_cast<double>(total * page_size));
}

}  // namespace

GrowthWatch::GrowthWatch(std::vector<Twin> twins, uint64_t limit, const AtPoint& at_point)
    : twins_(std::move(twins)), limit_(limit), at_point_(at_point) {
  if (const auto available = kernel::available_memory()) reserve_ = *available / reserved_part;
  thread_ = std::thread([this] { work(); });
}

GrowthWatch::~GrowthWatch() { (void)finish(); }

SnapshotGrowth GrowthWatch::finish() {
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  ended_changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  return seen_;
}

void GrowthWatch::work() {
  std::unique_lock lock(mutex_);
  while (!ended_changed_.wait_for(lock, interval, [&] { return ended_; })) {
    lock.unlock();
    const bool enough = must_stop();
    if (enough) stop_tree();
    lock.lock();
    if (enough) return;
  }
}

bool GrowthWatch::must_stop() {
  const uint64_t now = growth();
  seen_.most = std::max(seen_.most, now);
  const auto available = kernel::available_memory();
  return now > limit_ || (now > 0 && available && *available < reserve_);
}

uint64_t GrowthWatch::growth() {
  ++round_;
  uint64_t sum = 0;
  for (const auto& twin : twins_) {
    const auto memory = twin.memory.lock();
    // What has ended takes nothing beside its twin.
    if (memory && is_running(twin)) sum += own_bytes(*memory, twin.pages, round_);
  }
  return sum;
}

void GrowthWatch::stop_tree() {
  at_point_("limit-reached");
  const auto start = Clock::now();
  Diagnostics problems;
  std::vector<FrozenProcess> stopped;
  for (const auto& twin : twins_) {
    const auto is_it = [&](const FrozenProcess& process) { return process.host_pid == twin.host_pid; };
    if (!is_running(twin) || std::ranges::any_of(stopped, is_it)) continue;
    auto frozen = Freezer(problems, at_point_, start + patience).freeze(twin.host_pid);
    if (!frozen && frozen.error().code() == ErrorCode::gone) continue;
    if (!frozen) return abandon(frozen.error().message());
    std::ranges::move(*frozen, std::back_inserter(stopped));
  }
  if (problems.refused()) return abandon(problems.all().front().text());
  wait_for_end();
  stopped.clear();
  seen_.stopped_us = microseconds(Clock::now() - start);
}

void GrowthWatch::abandon(const std::string& reason) {
  for (const auto& twin : twins_) {
    if (const auto memory = twin.memory.lock()) {
      memory->abandon("it takes too much memory, and the application cannot be stopped: " + reason);
    }
  }
}

void GrowthWatch::wait_for_end() {
  std::unique_lock lock(mutex_);
  ended_changed_.wait(lock, [&] { return ended_; });
}

}  // namespace stasis::capture
