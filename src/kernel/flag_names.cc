#include "kernel/flag_names.h"

#include <algorithm>
#include <map>
#include <string>

namespace stasis::kernel {
namespace {

constexpr int bits = 64, key_bits = 4;

/// In which samples something holds.
using Occurrence = std::vector<bool>;

template <typename Holds>
Occurrence occurrence(const std::vector<FlagNames::Sample>& samples, Holds holds) {
  Occurrence found;
  for (const auto& sample : samples) found.push_back(holds(sample));
  return found;
}
bool is_none(const Occurrence& occurrence) { return std::ranges::find(occurrence, true) == occurrence.end(); }

std::vector<std::string> all_names() {
  std::vector<std::string> names;
  for (char first = 'a'; first <= 'z'; ++first)
    for (char second = 'a'; second <= 'z'; ++second) names.push_back({first, second});
  return names;
}

}  // namespace

FlagNames FlagNames::learn(const std::vector<Sample>& samples) {
  std::map<Occurrence, Group> groups;
  for (int bit = 0; bit < bits; ++bit) {
    const uint64_t mask = uint64_t{1} << bit;
    const auto where = occurrence(samples, [&](const Sample& sample) { return (sample.flags & mask) != 0; });
    if (!is_none(where)) groups[where].bits |= mask;
  }
  // What a name stands for must have been set wherever the name stood, and nowhere else.
  const auto belongs = [&](const Occurrence& where, auto note) {
    const auto group = groups.find(where);
    if (!is_none(where) && group != groups.end()) note(group->second.meaning);
    return is_none(where) || group != groups.end();
  };
  for (const auto& name : all_names()) {
    const auto where = occurrence(samples, [&](const Sample& sample) { return sample.meaning.names.contains(name); });
    if (!belongs(where, [&](Meaning& meaning) { meaning.names.insert(name); })) return {};
  }
  for (int bit = 0; bit < key_bits; ++bit) {
    const auto where =
        occurrence(samples, [&](const Sample& sample) { return (sample.meaning.protection_key >> bit & 1) != 0; });
    if (!belongs(where, [&](Meaning& meaning) { meaning.protection_key |= 1 << bit; })) return {};
  }
  FlagNames names;
  for (const auto& [where, group] : groups) {
    names.groups_.push_back(group);
    names.known_ |= group.bits;
  }
  return names;
}

std::optional<FlagNames::Meaning> FlagNames::of(uint64_t flags) const {
  if ((flags & ~known_) != 0 || groups_.empty()) return std::nullopt;
  Meaning meaning;
  for (const auto& group : groups_) {
    if ((flags & group.bits) == 0) continue;
    if ((flags & group.bits) != group.bits) return std::nullopt;
    meaning.names.insert(group.meaning.names);
    meaning.protection_key |= group.meaning.protection_key;
  }
  return meaning;
}

}  // namespace stasis::kernel
