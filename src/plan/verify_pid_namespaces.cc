#include "plan/verify_pid_namespaces.h"

#include <fmt/format.h>

#include <algorithm>

namespace stasis::plan {

/// From the outermost below the tree's own to `space`.
std::vector<Pid> NamespaceModel::line(Pid space) const {
  std::vector<Pid> spaces;
  for (Pid at = space; at.value != 0; at = above_.at(at)) spaces.push_back(at);
  std::ranges::reverse(spaces);
  return spaces;
}

/// One of the same name may have been there before.
void NamespaceModel::begin(Pid init, Pid above) {
  above_[init] = above;
  inits_.insert(init);
  const auto is_older = [&](const auto& entry) { return entry.first.first == init; };
  std::erase_if(released_, is_older);
  std::erase_if(taken_, is_older);
}

bool NamespaceModel::contains(Pid outer, Pid inner) const {
  for (Pid at = inner;; at = above_.at(at)) {
    if (at == outer) return true;
    if (at.value == 0) return false;
  }
}

const NamespaceModel::Place& NamespaceModel::place_of(pid_t id) const {
  static const Place outside;
  const auto found = places_.find(id);
  return found == places_.end() ? outside : found->second;
}

NamespaceModel::Place NamespaceModel::seen_from(Pid space, pid_t id) const {
  Place seen = place_of(id);
  while (!contains(seen.space, space)) {
    seen.space = above_.at(seen.space);
    seen.nested.pop_back();
  }
  return seen;
}

Broken NamespaceModel::claim(pid_t id, Pid space, const std::vector<pid_t>& nested,
                             const std::function<bool(const Stamp&)>& is_before) {
  const auto spaces = line(space);
  if (nested.size() != spaces.size())
    return fmt::format("it has {} nested ids, but the pid namespace is {} levels deep (EINVAL)", nested.size(),
                       spaces.size());
  for (size_t i = 0; i < spaces.size(); ++i) {
    if (nested[i] <= 0) return fmt::format("the nested id {} is out of range (EINVAL)", nested[i]);
    if (spaces[i].value == id && nested[i] != 1)
      return fmt::format("the first process of a pid namespace is its init, 1, not {} (EINVAL)", nested[i]);
    const Number number{spaces[i], nested[i]};
    const auto released = released_.find(number);
    if (taken_.contains(number) || (released != released_.end() && !is_before(released->second)))
      return fmt::format("{} is, or may still be, in use in the pid namespace of {} (EEXIST)", nested[i], spaces[i]);
  }
  for (size_t i = 0; i < spaces.size(); ++i) taken_[{spaces[i], nested[i]}] = id;
  if (!spaces.empty()) places_[id] = {space, nested};
  return {};
}

std::vector<pid_t> NamespaceModel::ids_in(Pid space) const {
  std::vector<pid_t> ids;
  for (auto at = taken_.lower_bound({space, 0}); at != taken_.end() && at->first.first == space; ++at)
    ids.push_back(at->second);
  return ids;
}

void NamespaceModel::release(pid_t id, Stamp when) {
  const auto place = places_.extract(id);
  if (place.empty()) return;
  const auto spaces = line(place.mapped().space);
  for (size_t i = 0; i < spaces.size(); ++i) {
    const Number number{spaces[i], place.mapped().nested[i]};
    const auto taken = taken_.find(number);
    if (taken == taken_.end() || taken->second != id) continue;
    taken_.erase(taken);
    released_[number] = when;
  }
  inits_.erase(Pid{id});
}

}  // namespace stasis::plan
