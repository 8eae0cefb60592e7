#include "plan/sharing_births.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <ranges>
#include <tuple>
#include <utility>

#include "plan/shareable.h"
#include "plan/tree_emission.h"

namespace stasis::plan {
namespace {

/// What is asked of a creation tree, beside what everybody's parent and session ask.
struct Wish {
  Births births;  ///< others than in the first tree
  Ancestors above;
  CarriedByTops by_tops;
  auto operator<=>(const Wish&) const = default;
};

/// Whoever cannot be given something is moved: among the creators of one who has it, below one, or beside one.
class Search {
 public:
  Search(const model::Application& application, const PlanOptions& options)
      : application_(application), tasks_(application), options_(options) {
    for (const auto& task : application.tasks) {
      if (task.state == model::TaskState::zombie) continue;
      for (size_t kind = 0; kind < shareable.size(); ++kind) {
        const ObjectId object = task.*shareable[kind].object;
        if (object.value != 0) users_[kind][object].push_back(task.pid);
      }
    }
  }

  bool is_anything_shared() const {
    return std::ranges::any_of(users_, [](const auto& of_kind) {
      return std::ranges::any_of(of_kind, [](const auto& entry) { return entry.second.size() > 1; });
    });
  }

  std::optional<SharingTree> run(SharingTree first) {
    const Births usual = first.tree.born_session;
    const size_t most_tried = std::clamp(most_work / application_.tasks.size(), least_tried, most_ever_tried);
    open_[0].emplace_back();
    for (size_t tried = 0; tried < most_tried && !open_.empty(); ++tried) {
      const Wish wish = take_most_promising();
      Births births = wish.births;
      births.insert(usual.begin(), usual.end());
      auto tree = tried == 0 ? std::optional(std::move(first.tree)) : tree_with(application_, births, wish.above);
      if (!tree) continue;
      SharingTree candidate{std::move(*tree), {}, {}};
      const auto apart = who_is_apart(candidate, wish.by_tops);
      if (apart.empty()) return candidate;
      if (!tried_.emplace(candidate.tree.creator, candidate.tree.born_session, wish.by_tops).second) continue;
      hopes_ = apart.size();
      for (const auto& one : apart | std::views::take(most_followed)) extend(wish, candidate.tree, one);
    }
    return std::nullopt;
  }

 private:
  using Apart = TreeEmission::Apart;

  Wish take_most_promising() {
    auto& best = open_.begin()->second;
    Wish wish = std::move(best.front());
    best.pop_front();
    if (best.empty()) open_.erase(open_.begin());
    return wish;
  }

  /// Builds the tree, for itself alone.
  std::vector<Apart> who_is_apart(SharingTree& candidate, const CarriedByTops& by_tops) const {
    static const Contributors nobody;
    candidate.carried = carried_in(application_, candidate.tree, by_tops);
    Emission out(application_, nobody, options_);
    out.carried = candidate.carried;
    TreeEmission emission(out, candidate.tree, {[&](Pid pid, Origin origin) -> Status {
                            if (pid == application_.root) return out.open_terminals(0), Status{};
                            if (origin.memory != candidate.tree.creator.at(pid))
                              candidate.copied_from[pid] = origin.memory;
                            return {};
                          }});
    return emission.all_apart();
  }

  void extend(const Wish& wish, const CreationTree& tree, const Apart& apart) {
    bring_together(wish, tree, apart.kind, apart.object);
    std::set<Pid> seen;
    look_above(wish, tree, apart.pid, seen);
    const auto users = users_[apart.kind].find(apart.object);
    if (users == users_[apart.kind].end()) return;
    for (const Pid user : users->second | std::views::take(most_users)) look_above(wish, tree, user, seen);
  }
  /// Those between have something else: maybe because of whom they share that with.
  void look_above(const Wish& wish, const CreationTree& tree, Pid pid, std::set<Pid>& seen) {
    for (size_t i = 0; i < most_creators && pid != tree.root; ++i, pid = tree.creator.at(pid)) {
      if (!seen.insert(pid).second) return;
      const auto* task = tasks_.find(pid);
      for (size_t kind = 0; task != nullptr && kind < shareable.size(); ++kind)
        bring_together(wish, tree, kind, task->*shareable[kind].object);
    }
  }
  void bring_together(const Wish& wish, const CreationTree& tree, size_t kind, ObjectId object) {
    const auto found = users_[kind].find(object);
    if (found == users_[kind].end() || found->second.size() < 2) return;
    if (Wish carried = wish; carried.by_tops[kind].insert(object).second) add(std::move(carried));
    const auto& users = found->second;
    const size_t count = std::min(users.size(), most_users);
    for (size_t i = 0; i < count; ++i) {
      for (size_t j = 0; j < count; ++j) {
        if (i == j) continue;
        add_above(wish, tree, users[i], users[j]);
        if (users[i] != tree.root) add_above(wish, tree, tree.creator.at(users[i]), users[j]);
      }
    }
  }

  void add_above(const Wish& wish, const CreationTree& tree, Pid creator, Pid child) {
    if (creator == child || child == tree.root || creator == tree.root) return;
    const Pid of_creator = born(tree, creator), of_child = born(tree, child);
    if (of_creator == of_child) return add(wish, {}, {}, creator, child);
    if (tree.is_leader(child)) {
      add(wish, child, of_creator, creator, child);
      if (tree.is_leader(creator)) add(wish, child, creator, {}, {});
    }
    if (tree.is_leader(creator)) add(wish, creator, of_child, creator, child);
    // Above the leader of a session that the child comes from.
    for (Pid at = of_child; tree.born_session.contains(at); at = born(tree, at)) {
      if (born(tree, at) == of_creator && at != creator) return add(wish, {}, {}, creator, at);
    }
  }
  Pid born(const CreationTree& tree, Pid pid) const {
    return tree.is_leader(pid) ? tree.born_session.at(pid) : tree.nodes.at(pid).session;
  }
  void add(Wish wish, Pid leader, Pid session, Pid creator, Pid child) {
    if (leader.value != 0) wish.births[leader] = session;
    if (child.value != 0) wish.above[child].insert(creator);
    add(std::move(wish));
  }
  void add(Wish wish) {
    if (seen_.insert(wish).second) open_[hopes_].push_back(std::move(wish));
  }

  static constexpr size_t most_work = 100'000, least_tried = 16, most_ever_tried = 1000;  // trees, and their tasks
  static constexpr size_t most_users = 6, most_creators = 8, most_followed = 3;

  const model::Application& application_;
  const model::TaskIndex tasks_;
  const PlanOptions& options_;
  std::array<std::map<ObjectId, std::vector<Pid>>, shareable.size()> users_;
  std::set<Wish> seen_;
  std::set<std::tuple<std::map<Pid, Pid>, Births, CarriedByTops>> tried_;  ///< creators and births
  std::map<size_t, std::deque<Wish>> open_;  ///< by how many were apart without what was wished for last
  size_t hopes_ = 0;
};

}  // namespace

Result<SharingTree> plan_sharing_tree(const model::Application& application, const PlanOptions& options) {
  SharingTree first{TRY(plan_tree(application, {}, options.likely_births)), {}, {}};
  Search search(application, options);
  if (search.is_anything_shared()) {
    if (auto found = search.run(first)) return std::move(*found);
  }
  first.carried = carried_in(application, first.tree, {});
  return first;
}

}  // namespace stasis::plan
