#include "plan/creators.h"

#include <algorithm>
#include <utility>

namespace stasis::plan {
namespace {

const std::set<Pid>& earlier_than(Pid pid, const Before& before) {
  static const std::set<Pid> nobody;
  const auto found = before.find(pid);
  return found == before.end() ? nobody : found->second;
}

/// All after those who must be before them.
std::expected<std::vector<Pid>, Pid> in_order(const std::vector<Pid>& members, const Before& before) {
  struct Visit {
    Pid pid;
    std::set<Pid>::const_iterator next;
  };
  std::vector<Pid> order;
  std::map<Pid, bool> done;  // false: being visited
  std::vector<Visit> open;
  const auto enter = [&](Pid pid) {
    const bool fresh = done.try_emplace(pid, false).second;
    if (fresh) open.push_back({pid, earlier_than(pid, before).begin()});
    return fresh || done.at(pid);
  };
  for (const Pid member : members) {
    enter(member);
    while (!open.empty()) {
      const Pid pid = open.back().pid;
      if (auto& next = open.back().next; next != earlier_than(pid, before).end()) {
        const Pid earlier = *next++;
        if (!enter(earlier)) return std::unexpected(earlier);
        continue;
      }
      order.push_back(pid);
      done[pid] = true;
      open.pop_back();
    }
  }
  return order;
}

class Hanging {
 public:
  Hanging(Pid top, const Places& places) : places_(places) { nodes_[top]; }

  void hang(Pid pid, Pid creator) {
    nodes_[pid] = {.up = creator, .depth = nodes_.at(creator).depth + 1, .below = {}};
    nodes_.at(creator).below.insert(pid);
  }

  /// Makes one line of them, and returns who is at its end.
  Pid lined_up(const std::set<Pid>& some) {
    std::vector<Pid> shallow_first(some.begin(), some.end());
    std::ranges::stable_sort(shallow_first, {}, [&](Pid pid) { return nodes_.at(pid).depth; });
    Pid end = shallow_first.front();
    for (const Pid next : shallow_first) end = below_both(end, next);
    return end;
  }
  Pid up(Pid pid) const { return nodes_.at(pid).up; }

 private:
  struct Node {
    Pid up;
    size_t depth = 0;
    std::set<Pid> below;
  };

  /// If they are on two branches these become one: whoever has more creators than before still has those that he must
  /// have. The shallower branch is hung under the other, but for whoever must be above.
  Pid below_both(Pid a, Pid b) {
    if (nodes_.at(a).depth > nodes_.at(b).depth) std::swap(a, b);
    Pid other = b;
    std::vector<Pid> shallow, deep;
    for (; nodes_.at(other).depth > nodes_.at(a).depth; other = up(other)) deep.push_back(other);
    if (other == a) return b;
    for (Pid branch = a; branch != other; branch = up(branch), other = up(other))
      shallow.push_back(branch), deep.push_back(other);
    Pid end = up(shallow.back());
    while (!shallow.empty() || !deep.empty()) {
      const bool from_deep = shallow.empty() || (!deep.empty() && place_of(deep.back()) <= place_of(shallow.back()));
      auto& next = from_deep ? deep : shallow;
      if (up(next.back()) != end) move(next.back(), end);
      end = next.back();
      next.pop_back();
    }
    return end;
  }
  std::pair<size_t, size_t> place_of(Pid pid) const {
    const auto found = places_.find(pid);
    return found == places_.end() ? std::pair<size_t, size_t>{} : found->second;
  }
  void move(Pid branch, Pid creator) {
    nodes_.at(up(branch)).below.erase(branch);
    nodes_.at(branch).up = creator;
    nodes_.at(creator).below.insert(branch);
    for (std::vector<Pid> open{branch}; !open.empty();) {
      auto& node = nodes_.at(open.back());
      open.pop_back();
      node.depth = nodes_.at(node.up).depth + 1;
      open.insert(open.end(), node.below.begin(), node.below.end());
    }
  }

  const Places& places_;
  std::map<Pid, Node> nodes_;
};

}  // namespace

std::expected<std::map<Pid, Pid>, Pid> creators_of(const std::vector<Pid>& members, Pid top, const Before& before,
                                                   const Places& places) {
  const auto order = in_order(members, before);
  if (!order) return std::unexpected(order.error());
  Hanging hanging(top, places);
  for (const Pid pid : *order) {
    const auto& earlier = earlier_than(pid, before);
    hanging.hang(pid, earlier.empty() ? top : hanging.lined_up(earlier));
  }
  std::map<Pid, Pid> creators;
  for (const Pid pid : members) creators[pid] = hanging.up(pid);
  return creators;
}

}  // namespace stasis::plan
