// Siblings that share what their creator does not have: who gives it to them.
//
// Whatever a process has it was born with, from its creator, or it is new: by a birth without the flag, or by unshare.
// So where one has some object together with what is there already, the other was new to that. What is there comes
// first, therefore, and each object that is new to it gets a holder of its own, which is the sibling of one that has
// the rest.
#include <algorithm>
#include <iterator>
#include <utility>

#include "plan/tree_emission.h"

namespace stasis::plan {

void TreeEmission::find_families(Pid creator, const std::vector<Pid>& children) {
  const Sharers sharers = sharers_among(creator, children);
  std::set<Pid> seen;
  for (const auto& [object, some] : sharers) {
    if (seen.contains(some.front())) continue;
    const auto connected = followed_from({some.front()}, sharers);
    const std::set<Pid> together(connected.begin(), connected.end());
    seen.insert(together.begin(), together.end());
    std::vector<Pid> family;
    std::ranges::copy_if(children, std::back_inserter(family), [&](Pid child) { return together.contains(child); });
    if (!are_of_one_time(creator, family) || !needs_holder(creator, family, sharers)) continue;
    for (const Pid member : family) family_of_[member] = families_.size();
    auto& added = families_.emplace_back(Family{creator, order_of_births(creator, family, sharers), {}});
    for (const Pid member : family) {
      for (size_t kind = 0; kind < shareable.size(); ++kind) ++added.users[{kind, current(member, kind)}];
    }
  }
}

/// Of those who are born in one session: what several of them are to have, and the creator does not.
TreeEmission::Sharers TreeEmission::sharers_among(Pid creator, const std::vector<Pid>& children) const {
  Sharers sharers;
  for (const Pid child : children) {
    const auto* task = out_.tasks.find(child);
    if (task == nullptr || task->state == model::TaskState::zombie || entries_.contains(child)) continue;
    for (size_t kind = 0; kind < shareable.size(); ++kind) {
      const ObjectId object = current(child, kind);
      if (object.value != 0 && !comes_from(creator, child, kind)) sharers[{kind, object}].push_back(child);
    }
  }
  std::erase_if(sharers, [](const auto& entry) { return entry.second.size() < 2; });
  return sharers;
}

/// It has that of its own now, or will.
bool TreeEmission::comes_from(Pid creator, Pid child, size_t kind) const {
  return share_at_birth(creator, child, kind) || current(child, kind) == own(creator, kind);
}

/// Those, then all who share something with them, then those who share something with these.
std::vector<Pid> TreeEmission::followed_from(std::vector<Pid> order, const Sharers& sharers) const {
  std::set<Pid> seen(order.begin(), order.end());
  std::set<SharedObject> followed;
  for (size_t i = 0; i < order.size(); ++i) {
    for (size_t kind = 0; kind < shareable.size(); ++kind) {
      const auto others = sharers.find({kind, current(order[i], kind)});
      if (others == sharers.end() || !followed.insert(others->first).second) continue;
      std::ranges::copy_if(others->second, std::back_inserter(order),
                           [&](Pid other) { return seen.insert(other).second; });
    }
  }
  return order;
}

/// None of them is to have what the creator carries if another is to have what comes to the creator later.
bool TreeEmission::are_of_one_time(Pid creator, const std::vector<Pid>& family) const {
  return std::ranges::none_of(std::array{files_kind, fs_kind}, [&](size_t kind) {
    const auto has = [&](ObjectId object) {
      return std::ranges::any_of(family, [&](Pid member) { return current(member, kind) == object; });
    };
    return carried_by(creator, kind).value != 0 && has(carried_by(creator, kind)) && own(creator, kind).value != 0 &&
           has(own(creator, kind));
  });
}

/// The eldest could create the others (CLONE_PARENT) if it stays what it is born as, and has all that they have.
bool TreeEmission::needs_holder(Pid creator, const std::vector<Pid>& family, const Sharers& sharers) const {
  const Pid eldest = family.front();
  const auto has_more = [&](Pid member) {
    for (size_t kind = 0; kind < shareable.size(); ++kind) {
      const ObjectId object = current(member, kind);
      const bool is_given = share_at_birth(creator, member, kind) || sharers.contains({kind, object});
      if (is_given && object != current(eldest, kind)) return true;
    }
    return false;
  };
  const auto comes_otherwise = [&](Pid member) {
    return tree_.nodes.at(member).parent != creator || tree_.moved.contains(member) || out_.spaces.is_init(member) ||
           thread_for(creator, member) != leader_of(creator);
  };
  return tree_.is_leader(eldest) || std::ranges::any_of(family, comes_otherwise) ||
         std::ranges::any_of(family, has_more);
}

/// Those first who have something from the creator, then those who share something with them.
std::vector<Pid> TreeEmission::order_of_births(Pid creator, const std::vector<Pid>& family,
                                               const Sharers& sharers) const {
  const auto has_something_from_creator = [&](Pid member) {
    for (size_t kind = 0; kind < shareable.size(); ++kind) {
      if (current(member, kind).value != 0 && comes_from(creator, member, kind)) return true;
    }
    return false;
  };
  std::vector<Pid> first;
  std::ranges::copy_if(family, std::back_inserter(first), has_something_from_creator);
  if (first.empty()) first.push_back(family.front());
  return followed_from(std::move(first), sharers);
}

/// A family takes its places among the children of its creator in an order of its own.
Pid TreeEmission::next_born(Pid child) const {
  const auto found = family_of_.find(child);
  if (found == family_of_.end()) return child;
  const auto& family = families_[found->second];
  return family.members[family.born];
}

/// creator → holder → relay → child: the child is the relay's orphan, the holder stays for the others.
Status TreeEmission::spawn_from_holder(std::vector<Growing>& line, Pid child) {
  auto& family = families_.at(family_of_.at(child));
  const Pid creator = family.creator;
  if (family.born++ == 0) {
    for (const Pid member : family.members) TRY(unshare_for(creator, member));
    auto& himself = family.holders.emplace_back(Holder{.pid = creator});
    himself.source.fill(creator);
    for (size_t kind = 0; kind < shareable.size(); ++kind) himself.has[kind] = current(creator, kind);
  }
  const Holder holder = family.holders[TRY(holder_for(family, child))];
  Fork born = birth_of<Fork>(creator, child);
  for (size_t kind = 0; kind < shareable.size(); ++kind) {
    const ObjectId object = current(child, kind);
    born.*shareable[kind].flag = object.value != 0 && holder.has[kind] == object;
    if (born_objects_[kind].contains(object)) continue;
    // The others have it from here on, and not a copy of the creator's.
    for (auto& other : family.holders) {
      if (other.has[kind] == object) other.source[kind] = child;
    }
  }
  const Origin origin{holder.source[files_kind], holder.source[memory_kind]};
  const Pid relay = fork_through_relay(holder.pid, born);
  return begin(line, {child, creator, origin, relay, holder.pid});
}

/// It is the first to have what it will have.
bool TreeEmission::is_new_with(Pid child, size_t kind) const {
  const ObjectId object = current(child, kind);
  return object.value != 0 && !born_objects_[kind].contains(object);
}

/// One that has all that the child is to share with anybody.
Result<size_t> TreeEmission::holder_for(Family& family, Pid child) {
  size_t lacking = 0;
  const auto has_what_is_there = [&](const Holder& holder) {
    for (size_t kind = 0; kind < shareable.size(); ++kind) {
      const ObjectId object = current(child, kind);
      if (!born_objects_[kind].contains(object) || holder.has[kind] == object) continue;
      lacking = kind;
      return false;
    }
    return true;
  };
  const auto found = std::ranges::find_if(family.holders, has_what_is_there);
  if (found == family.holders.end()) {
    TRY(leave_apart({child, lacking, current(child, lacking)}));
    return 0;
  }
  const auto base = static_cast<size_t>(found - family.holders.begin());
  for (size_t kind = 0; kind < shareable.size(); ++kind) {
    if (is_new_with(child, kind) && family.users.at({kind, current(child, kind)}) > 1)
      return new_holder(family, base, child);
  }
  return base;
}

/// What the child is the first to have it has instead, and else what the other has, if any of the family does.
size_t TreeEmission::new_holder(Family& family, size_t base, Pid child) {
  const Holder& other = family.holders[base];
  Holder holder;
  Fork birth = out_.transient(family.creator);
  holder.pid = birth.child_pid, holder.source = other.source;
  for (size_t kind = 0; kind < shareable.size(); ++kind) {
    const ObjectId object = current(child, kind);
    const bool is_new = is_new_with(child, kind);
    const bool is_kept = !is_new && family.users.contains({kind, other.has[kind]});
    if (is_new)
      holder.has[kind] = family.users.at({kind, object}) > 1 ? object : ObjectId{};
    else if (is_kept)
      holder.has[kind] = other.has[kind];
    birth.*shareable[kind].flag = is_kept && other.has[kind].value != 0;
  }
  out_.take_table(other.pid);
  if (base == 0)
    out_.process(other.pid).add(birth);
  else
    out_.process(other.pid).add(as_clone(birth));
  if (holder.has[files_kind].value != 0) out_.carried.files[holder.pid] = holder.has[files_kind];
  family.holders.push_back(holder);
  return family.holders.size() - 1;
}

/// Those who have passed on all that they can: a porter with the one that it is for, holders with the last of a family.
std::vector<Pid> TreeEmission::done_with(const Growing& lifted) {
  if (lifted.relay_of == lifted.creator) return {};
  const auto found = family_of_.find(lifted.pid);
  if (found == family_of_.end()) return {lifted.relay_of};
  auto& family = families_[found->second];
  if (++family.lifted < family.members.size()) return {};
  std::vector<Pid> holders;
  for (size_t i = 1; i < family.holders.size(); ++i) holders.push_back(family.holders[i].pid);
  return holders;
}

}  // namespace stasis::plan
