#include "capture/early_facts.h"

#include <map>

#include "base/parallel.h"

namespace stasis::capture {

EarlyFacts::EarlyFacts(const std::vector<FrozenProcess>& frozen, const kernel::MappingFlags* flags) : flags_(flags) {
  for (const auto& process : frozen) {
    if (!process.zombie && !process.refused) readings_.push_back({process.witness(), nullptr});
  }
  thread_ = start_beside([this] { work(); });
}

void EarlyFacts::work() {
  for (size_t index = next_++; index < readings_.size(); index = next_++) {
    if (auto facts = resource::read_facts(readings_[index].witness, flags_)) readings_[index].facts = std::move(*facts);
  }
}

void EarlyFacts::hand_out(std::vector<LiveProcess>& processes) {
  work();
  thread_.join();
  std::map<pid_t, std::shared_ptr<const resource::ProcessFacts>> known;
  for (auto& reading : readings_) known[reading.witness] = std::move(reading.facts);
  for (auto& process : processes) process.view.known_facts = known[process.view.witness()];
}

}  // namespace stasis::capture
