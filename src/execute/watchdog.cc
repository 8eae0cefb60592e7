#include "execute/watchdog.h"

#include <unistd.h>

#include <utility>

#include "kernel/proc.h"

namespace stasis::execute {
namespace {

constexpr std::chrono::milliseconds between_looks{100};

}  // namespace

Watchdog::Watchdog(Scene scene) : scene_(std::move(scene)), runners_(scene_.area.header().slot_count) {
  for (const auto& [runner, slot] : scene_.lowered.slot_of) runners_.at(slot) = runner;
  thread_ = std::thread([this] { watch(); });
}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    done_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

std::optional<Watchdog::Position> Watchdog::dead() const {
  const std::lock_guard lock(mutex_);
  return dead_;
}

std::optional<std::vector<Watchdog::Position>> Watchdog::standing() const {
  const std::lock_guard lock(mutex_);
  return standing_;
}

/// Patience is counted in looks: while stasis is stopped, or the machine sleeps, nobody looks and nobody can move.
void Watchdog::watch() {
  const auto limit = scene_.patience / between_looks;
  std::unique_lock lock(mutex_);
  for (int64_t idle = 0; !wake_.wait_for(lock, between_looks, [this] { return done_; });) {
    has_searched_ = false;
    if (look_for_dead()) return scene_.area.cancel();
    idle = has_moved() ? 0 : idle + 1;
    if (idle < limit || scene_.area.failed() != 0) continue;
    standing_ = positions();
    return scene_.area.cancel();
  }
}

/// Who cannot be seen need not be dead: a process that is born or gets another parent while the tree is walked may be
/// missed. One that is dead is so the next time, too, and has not come further.
bool Watchdog::look_for_dead() {
  std::map<uint32_t, uint32_t> suspects;
  for (uint32_t index = 1; index < runners_.size(); ++index) {
    if (!is_on_its_way(index) || !may_be_dead(index)) continue;
    const uint32_t at = scene_.area.slot(index).program_counter;
    suspects[index] = at;
    if (const auto before = suspects_.find(index); before == suspects_.end() || before->second != at) continue;
    dead_ = Position{index, at};
    return true;
  }
  suspects_ = std::move(suspects);
  return false;
}

/// It runs, or somebody has created it and it is about to.
bool Watchdog::is_on_its_way(uint32_t index) const {
  const uint32_t state = scene_.area.state(index);
  if (state != agent::slot_not_started) return state == agent::slot_running;
  const auto birth = scene_.lowered.births.find(index);
  if (birth == scene_.lowered.births.end()) return false;
  const auto* results =
      reinterpret_cast<const int64_t*>(scene_.area.base() + scene_.area.slot(birth->second.creator).results);
  return __atomic_load_n(&results[birth->second.instruction], __ATOMIC_ACQUIRE) > 0;
}

bool Watchdog::may_be_dead(uint32_t index) {
  // At its EXIT it is dying as it was told.
  const auto* at = instruction_of(index);
  if (at != nullptr && at->operation == agent::Operation::exit) return false;
  const auto thread = find(index);
  if (!thread) return true;
  const auto stat = kernel::read_thread_stat(thread->pid, thread->tid);
  return !stat || stat->is_dead();
}

const agent::Instruction* Watchdog::instruction_of(uint32_t index) const {
  const auto& slot = scene_.area.slot(index);
  const auto program = scene_.area.program(slot);
  return slot.program_counter < program.size() ? &program[slot.program_counter] : nullptr;
}

std::optional<HostThread> Watchdog::find(uint32_t index) {
  if (index == 0) return HostThread{getpid(), scene_.area.slot(0).tid};
  const auto [pid, tid] = runners_.at(index);
  if (!scene_.namespace_init) return HostThread{pid.value, tid.value};
  // What a slot notes of itself are its own numbers, which in a nested namespace are others still.
  auto found = known_.find(tid.value);
  if (found == known_.end() && !std::exchange(has_searched_, true)) {
    if (const pid_t root = scene_.namespace_init(); root != 0) known_.merge(host_threads(root));
    found = known_.find(tid.value);
  }
  return found == known_.end() ? std::nullopt : std::optional(found->second);
}

bool Watchdog::has_moved() {
  std::vector<uint32_t> picture;
  for (uint32_t index = 0; index < runners_.size(); ++index) {
    picture.push_back(scene_.area.state(index));
    picture.push_back(scene_.area.slot(index).program_counter);
  }
  for (uint32_t& counter : scene_.area.counters()) picture.push_back(__atomic_load_n(&counter, __ATOMIC_RELAXED));
  picture.push_back(static_cast<uint32_t>(scene_.served.load()));
  const bool has_changed = picture != picture_;
  picture_ = std::move(picture);
  return somebody_works() || has_changed;
}

/// In the midst of one long instruction, such as reading a GiB: it runs, waits for a disk, or goes to sleep again and
/// again. Who waits for others goes to sleep as often, and that says nothing.
bool Watchdog::somebody_works() {
  bool works = false;
  for (uint32_t index = 0; index < runners_.size(); ++index) {
    if (index == 0 ? scene_.area.state(0) != agent::slot_running : !is_on_its_way(index)) continue;
    const auto* at = instruction_of(index);
    const bool waits =
        at != nullptr && (at->operation == agent::Operation::wait || at->operation == agent::Operation::await_child);
    if (waits) continue;
    const auto thread = find(index);
    if (!thread) continue;
    const auto status = kernel::read_thread_status(thread->pid, thread->tid);
    if (!status) continue;
    const auto known = sleeps_.try_emplace(index, status->voluntary_switches).first;
    const bool has_slept = std::exchange(known->second, status->voluntary_switches) != status->voluntary_switches;
    works = works || has_slept || status->state == 'R' || status->state == 'D';
  }
  return works;
}

std::vector<Watchdog::Position> Watchdog::positions() const {
  std::vector<Position> found;
  for (uint32_t index = 0; index < runners_.size(); ++index) {
    if (scene_.area.state(index) == agent::slot_running || (index != 0 && is_on_its_way(index)))
      found.push_back({index, scene_.area.slot(index).program_counter});
  }
  return found;
}

}  // namespace stasis::execute
