#include "plan/birth_search.h"

#include <algorithm>
#include <optional>
#include <ranges>

#include "plan/creators.h"

namespace stasis::plan {
namespace {

constexpr size_t much = 16;  // sessions left: looked at anew only when it is chosen for

}  // namespace

BirthSearch::BirthSearch(CreationTree& tree, const BirthLines& lines, const NamespaceBirths& spaces, TreeLimits limits,
                         std::function<bool()> complete)
    : tree_(tree), lines_(lines), spaces_(spaces), limits_(limits), complete_(std::move(complete)) {
  for (const auto& [pid, node] : tree_.nodes) {
    sessions_.insert(node.session);
    if (node.session != pid || pid == tree_.root) continue;
    index_[pid] = leaders_.size();
    leaders_.push_back({pid, {}, {}});
  }
}

bool BirthSearch::take_over(const Births& likely) {
  for (const auto& leader : leaders_) {
    const auto birth = likely.find(leader.pid);
    const bool known = birth != likely.end() && sessions_.contains(birth->second);
    if (known) tree_.born_session[leader.pid] = birth->second;
    if (!known || lines_.closes_cycle(leader.pid) || !spaces_.allows_birth(tree_.nodes.at(leader.pid), birth->second))
      return tree_.born_session.clear(), false;
  }
  return complete_() || (tree_.born_session.clear(), false);
}

bool BirthSearch::run() {
  list_demands();
  list_related();
  return attempt(limits_.search_steps / 2, false) || attempt(limits_.search_steps, true);
}

// ---- what is known before the search

/// A parent is among the creators only if its birth session is that of the child, or one above it.
void BirthSearch::list_demands() {
  std::set<Demand> demands;
  for (const auto& [pid, node] : tree_.nodes) {
    if (!lines_.is_restricted(node)) continue;
    const Birth above = lines_.birth_of(node.parent), below = lines_.birth_of(pid);
    const bool is_anywhere = !spaces_.any() && above == Birth{false, lines_.root_session()};
    if (above != below && !is_anywhere) demands.insert({above, below, spaces_.home_of(node.parent)});
  }
  demands_.assign(demands.begin(), demands.end());
}

/// Sessions that a leader's own has to do with: those above its members, and those below the leader. A birth in any
/// other is hardly ever needed.
void BirthSearch::list_related() {
  for (const auto& [pid, node] : tree_.nodes) {
    if (node.has_parent() && node.session != node.parent && node.session != pid)
      foreign_children_[node.parent].push_back(node.session);
  }
  for (const auto& leader : leaders_) related_[leader.pid];
  const auto relate = [&](Pid leader, Pid session) {
    if (const auto led = related_.find(leader); led != related_.end()) led->second.insert(session);
  };
  for (const auto& [pid, node] : tree_.nodes) {
    if (!node.has_parent() || pid == tree_.root) continue;
    // What is above a parent has been seen when its session was entered.
    const bool enters = tree_.nodes.at(node.parent).session != node.session;
    for (Pid at = node.parent;; at = tree_.nodes.at(at).parent) {
      relate(node.session, tree_.nodes.at(at).session);
      relate(at, node.session);
      if (at == tree_.root || !enters) break;
    }
  }
}

/// Likely ones first: its foreign children's sessions, its parent's, the root's, the others.
std::vector<Pid> BirthSearch::candidates(Pid leader, bool any_session) const {
  std::vector<Pid> list;
  std::set<Pid> listed{leader};
  const auto add = [&](Pid session) {
    if (listed.insert(session).second) list.push_back(session);
  };
  const auto& node = tree_.nodes.at(leader);
  if (node.has_parent()) {
    if (const auto foreign = foreign_children_.find(leader); foreign != foreign_children_.end())
      std::ranges::for_each(foreign->second, add);
    add(tree_.nodes.at(node.parent).session);
  }
  add(lines_.root_session());
  std::ranges::for_each(any_session ? sessions_ : related_.at(leader), add);
  return list;
}

// ---- the search

/// Begins anew, twice as far each time, with those for whom nothing was left until then: what is hard is a handful of
/// leaders, and whoever chooses for them late tries in vain all that has been chosen between.
bool BirthSearch::attempt(size_t bound, bool any_session) {
  constexpr size_t least_attempt = 128;
  exhausted_ = false;
  for (size_t extra = least_attempt; steps_ < bound && !exhausted_; extra *= 2) {
    if (search(std::min(bound, steps_ + leaders_.size() + extra), any_session)) return true;
  }
  return false;
}

/// false: to be begun anew, or `exhausted_`.
bool BirthSearch::search(size_t bound, bool any_session) {
  exhausted_ = !begin(any_session);
  if (exhausted_) return false;
  while (++steps_ < bound) {
    if (!undecided_.empty())
      decide();
    else if (complete_())
      return true;
    else
      blame_everybody();
    exhausted_ = !advance();
    if (exhausted_) return false;
  }
  return false;
}

/// What all births together do not lead to, any of them may be the reason for.
void BirthSearch::blame_everybody() {
  if (decisions_.empty()) return;
  for (const auto& leader : leaders_) decisions_.back().conflict.insert(leader.pid);
}

/// false: somebody would have to be born before himself, whatever is chosen.
bool BirthSearch::begin(bool any_session) {
  tree_.born_session.clear();
  open_demands_.clear(), waiting_.clear(), before_.clear(), undecided_.clear(), decisions_.clear();
  for (const auto& demand : demands_) {
    for (const auto& birth : {demand.above, demand.below}) open_demands_[birth.id].push_back(&demand);
  }
  for (const auto& [pid, node] : tree_.nodes) {
    if (lines_.is_restricted(node)) file_order(node);
  }
  if (!orders_are_possible()) return false;
  for (size_t index = 0; index < leaders_.size(); ++index) {
    auto& leader = leaders_[index];
    leader.all = candidates(leader.pid, any_session);
    std::erase_if(leader.all, [&](Pid session) { return !fits(leader.pid, session); });
    leader.left = leader.all;
    leader.decided = false;
    undecided_.insert(urgency_of(index));
  }
  moved_demands_.clear(), moved_waits_.clear(), added_orders_.clear(), narrowed_.clear();
  return true;
}

/// What is left for others is known for those who have been looked at lately: here it is for certain.
void BirthSearch::decide() {
  const size_t index = undecided_.begin()->leader;
  auto& leader = leaders_[index];
  undecided_.erase(undecided_.begin());
  leader.decided = true;
  Decision decision{index};
  for (const Pid session : std::views::reverse(leader.left)) {
    if (fits(leader.pid, session)) decision.untried.push_back(session);
  }
  decisions_.push_back(std::move(decision));
}

/// The next choice that contradicts nothing; false: none is left.
bool BirthSearch::advance() {
  while (!decisions_.empty()) {
    auto& last = decisions_.back();
    if (last.chosen) retract(last);
    while (!last.untried.empty()) {
      const Pid session = last.untried.back();
      last.untried.pop_back();
      if (choose(last, session)) return true;
      retract(last);
    }
    ++leaders_[last.leader].dead_ends;
    explain_all(leaders_[last.leader], last.conflict);
    auto conflict = std::move(last.conflict);
    conflict.erase(leaders_[last.leader].pid);
    take_back_last();
    while (!decisions_.empty() && !conflict.contains(leaders_[decisions_.back().leader].pid)) take_back_last();
    if (!decisions_.empty()) decisions_.back().conflict.merge(conflict);
  }
  return false;
}

void BirthSearch::take_back_last() {
  auto& last = decisions_.back();
  if (last.chosen) retract(last);
  auto& leader = leaders_[last.leader];
  leader.decided = false;
  undecided_.insert(urgency_of(last.leader));
  decisions_.pop_back();
}

/// What depended on this birth depends on that of the leader at whom the way goes on.
bool BirthSearch::choose(Decision& decision, Pid session) {
  const Pid leader = leaders_[decision.leader].pid;
  decision.chosen = true;
  decision.demands = moved_demands_.size(), decision.orders = added_orders_.size();
  decision.waits = moved_waits_.size(), decision.domains = narrowed_.size();
  tree_.born_session[leader] = session;
  const Pid end = lines_.end_of(session);
  std::set<Pid> concerned{end};
  for (const auto* demand : open_demands_[leader]) {
    if (is_met(*demand)) continue;
    concerned.insert({open_end(demand->above), open_end(demand->below)});
    if (end == lines_.root_session()) continue;
    open_demands_[end].push_back(demand);
    moved_demands_.push_back(end);
  }
  const auto orders = waiting_.find(leader);
  if (orders != waiting_.end()) {
    for (const Node* node : orders->second) {
      const auto order = file_order(*node);
      if (!order || !comes_before(order->first, order->second, decision.conflict)) continue;
      return explain_order(*node, decision.conflict), false;
    }
  }
  return std::ranges::all_of(concerned, [&](Pid other) { return narrow(other, decision.conflict); });
}

void BirthSearch::retract(Decision& decision) {
  decision.chosen = false;
  for (; narrowed_.size() > decision.domains; narrowed_.pop_back())
    set_left(narrowed_.back().first, std::move(narrowed_.back().second));
  for (; added_orders_.size() > decision.orders; added_orders_.pop_back())
    before_.at(added_orders_.back().first).erase(added_orders_.back().second);
  for (; moved_waits_.size() > decision.waits; moved_waits_.pop_back()) waiting_.at(moved_waits_.back()).pop_back();
  for (; moved_demands_.size() > decision.demands; moved_demands_.pop_back())
    open_demands_.at(moved_demands_.back()).pop_back();
  tree_.born_session.erase(leaders_[decision.leader].pid);
}

// ---- what a choice leaves to others

bool BirthSearch::is_plausible(const Demand& demand) const {
  const auto above = lines_.known(demand.above), below = lines_.known(demand.below);
  return (!above || !below || !lines_.leads_elsewhere(*above, *below)) && leads_through(demand);
}
bool BirthSearch::is_met(const Demand& demand) const {
  const auto above = lines_.known(demand.above), below = lines_.known(demand.below);
  return above && below && lines_.is_on_the_way(*above, *below);
}
/// Whether all leaders on the way, as far as that is known, can be created between the parent and the child. Adds those
/// whose births lead to one who cannot.
bool BirthSearch::leads_through(const Demand& demand, std::set<Pid>* conflict) const {
  const auto above = lines_.known(demand.above), below = lines_.known(demand.below);
  if (!spaces_.any() || !above || !below) return true;
  std::set<Pid> seen;
  for (const auto& birth : {demand.above, demand.below}) {
    if (birth.chosen) seen.insert(birth.id);
  }
  for (Pid at = *below; at != *above;) {
    const bool is_parent = demand.above.chosen && at == demand.above.id;
    const auto born = tree_.born_session.find(at);
    if (is_parent || born == tree_.born_session.end()) return true;
    seen.insert(at);
    if (!spaces_.can_be_between(tree_.nodes.at(at), born->second, demand.space)) {
      if (conflict != nullptr) conflict->merge(seen);
      return false;
    }
    at = born->second;
  }
  return true;
}

/// Whether a birth contradicts nothing that is chosen already. Demands that do not depend on it are as they were.
bool BirthSearch::fits(Pid leader, Pid session) {
  if (!spaces_.allows_birth(tree_.nodes.at(leader), session)) return false;
  tree_.born_session[leader] = session;
  const auto demands = open_demands_.find(leader);
  const bool fitting =
      !lines_.closes_cycle(leader) &&
      (demands == open_demands_.end() ||
       std::ranges::all_of(demands->second, [&](const Demand* demand) { return is_plausible(*demand); }));
  tree_.born_session.erase(leader);
  return fitting;
}

/// The leader at whom the way up from a birth ends now.
Pid BirthSearch::open_end(const Birth& birth) const {
  const auto session = lines_.known(birth);
  return session ? lines_.end_of(*session) : birth.id;
}

/// What does not fit any more is struck out; false: nothing is left. Where much is left that can wait.
bool BirthSearch::narrow(Pid pid, std::set<Pid>& conflict) {
  const auto found = index_.find(pid);
  if (found == index_.end()) return true;
  const auto& leader = leaders_[found->second];
  if (leader.decided || leader.left.size() > much) return true;
  std::vector<Pid> fitting;
  std::ranges::copy_if(leader.left, std::back_inserter(fitting), [&](Pid session) { return fits(pid, session); });
  if (fitting.size() == leader.left.size()) return true;
  narrowed_.emplace_back(found->second, leader.left);
  set_left(found->second, std::move(fitting));
  if (!leader.left.empty()) return true;
  explain_all(leader, conflict);
  return false;
}

void BirthSearch::explain_all(const Leader& leader, std::set<Pid>& conflict) {
  for (const Pid session : leader.all) {
    if (!fits(leader.pid, session)) explain(leader.pid, session, conflict);
  }
}

/// Adds the leaders whose births are the reason why one does not fit: those on the ways that it was judged by.
void BirthSearch::explain(Pid leader, Pid session, std::set<Pid>& conflict) {
  tree_.born_session[leader] = session;
  if (lines_.closes_cycle(leader)) {
    add_way(session, leader, conflict);
  } else {
    const auto& demands = open_demands_[leader];
    const auto broken = std::ranges::find_if_not(demands, [&](const Demand* one) { return is_plausible(*one); });
    if (leads_through(**broken, &conflict)) {
      for (const auto& birth : {(*broken)->above, (*broken)->below}) {
        if (birth.chosen) conflict.insert(birth.id);
        add_way(*lines_.known(birth), lines_.root_session(), conflict);
      }
    }
  }
  tree_.born_session.erase(leader);
}

void BirthSearch::add_way(Pid session, Pid until, std::set<Pid>& conflict) const {
  for (Pid at = session; at != until;) {
    const auto next = tree_.born_session.find(at);
    if (next == tree_.born_session.end()) return;
    conflict.insert(at);
    at = next->second;
  }
}

void BirthSearch::set_left(size_t index, std::vector<Pid> left) {
  auto& leader = leaders_[index];
  undecided_.erase(urgency_of(index));
  leader.left = std::move(left);
  undecided_.insert(urgency_of(index));
}

// ---- the order of births

/// The final parent comes before the child, or before the first between them that was born in the parent's session. Who
/// that is is known with the last birth between them; then it is returned with the parent.
std::optional<std::pair<Pid, Pid>> BirthSearch::file_order(const Node& node) {
  const Birth parent = lines_.birth_of(node.parent);
  const auto above = lines_.known(parent), below = lines_.known(lines_.birth_of(node.pid));
  const Pid end = !above ? parent.id : !below ? node.pid : lines_.climb(*below, *above);
  if (!above || !below || end != *above) {
    waiting_[end].push_back(&node);
    moved_waits_.push_back(end);
    return std::nullopt;
  }
  const Pid follower = lines_.first_below(*above, *below, node.pid);
  if (follower == node.parent) return std::nullopt;
  if (before_[follower].emplace(node.parent, &node).second) added_orders_.emplace_back(follower, node.parent);
  return std::pair(follower, node.parent);
}

bool BirthSearch::orders_are_possible() const {
  std::vector<Pid> members;
  Before before;
  for (const auto& [later, earlier] : before_) {
    members.push_back(later);
    for (const auto& [one, reason] : earlier) before[later].insert(one);
  }
  return creators_of(members, tree_.root, before).has_value();
}

/// If so, all whose births that depends on are added to `conflict`, and maybe others.
bool BirthSearch::comes_before(Pid earlier, Pid later, std::set<Pid>& conflict) const {
  std::set<Pid> seen{later};
  std::vector<const Node*> reasons;
  for (std::vector<Pid> open{later}; !open.empty();) {
    const auto found = before_.find(open.back());
    open.pop_back();
    if (found == before_.end()) continue;
    for (const auto& [one, reason] : found->second) {
      reasons.push_back(reason);
      if (one == earlier) {
        for (const auto* node : reasons) explain_order(*node, conflict);
        return true;
      }
      if (seen.insert(one).second) open.push_back(one);
    }
  }
  return false;
}

void BirthSearch::explain_order(const Node& node, std::set<Pid>& conflict) const {
  const Birth above = lines_.birth_of(node.parent), below = lines_.birth_of(node.pid);
  for (const auto& birth : {above, below}) {
    if (birth.chosen) conflict.insert(birth.id);
  }
  add_way(*lines_.known(below), *lines_.known(above), conflict);
}

}  // namespace stasis::plan
