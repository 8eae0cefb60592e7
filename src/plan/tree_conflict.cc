#include "plan/tree_conflict.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "model/pid_namespaces.h"
#include "plan/shape.h"

namespace stasis::plan {
namespace {

/// A child of the root is born anywhere, one of another init in its pid namespace: who becomes one makes no demand any
/// more. Who has come into a namespace from outside stays where he is: siblings that he has there have his parent.
class Relaxation {
 public:
  Relaxation(const model::Application& application, const TreeLimits& limits)
      : bare_(renamed(application, {})), limits_{std::min(limits.search_steps, steps_of_one_question)} {
    const model::PidNamespaces spaces(application);
    for (const auto& task : application.tasks) {
      const Pid space = spaces.of(task.parent), init = space.value == 0 ? application.root : space;
      if (task.pid == application.root || task.parent == init || spaces.born_in(task.pid) != space) continue;
      demanding_.push_back(task.pid);
      inits_[task.pid] = init;
    }
  }
  const std::vector<Pid>& demanding() const { return demanding_; }

  /// false, too, where that is not decided, or no more questions are left.
  bool conflict_without_others(const std::set<Pid>& processes) {
    if (questions_left_ == 0) return false;
    --questions_left_;
    auto relaxed = bare_;
    for (auto& task : relaxed.tasks) {
      const auto init = inits_.find(task.pid);
      if (init != inits_.end() && !processes.contains(task.pid)) task.parent = init->second;
    }
    const auto verdict = decide_tree(relaxed, limits_);
    return verdict && *verdict == Verdict::not_restorable;
  }
  bool may_ask() const { return questions_left_ > 0; }

 private:
  static constexpr size_t steps_of_one_question = 2000;

  const model::Application bare_;
  TreeLimits limits_;
  std::vector<Pid> demanding_;
  std::map<Pid, Pid> inits_;  ///< of the namespaces that their parents live in
  size_t questions_left_ = 5000;
};

/// Leaves out halves, quarters, …, single ones. Whoever cannot be left out now cannot be later either: a demand less
/// makes no tree unrestorable.
std::set<Pid> irreducible(Relaxation& relaxation) {
  std::set<Pid> kept(relaxation.demanding().begin(), relaxation.demanding().end());
  for (size_t size = (kept.size() + 1) / 2; size > 0; size = size == 1 ? 0 : (size + 1) / 2) {
    const std::vector<Pid> now(kept.begin(), kept.end());
    for (size_t begin = 0; begin < now.size(); begin += size) {
      auto fewer = kept;
      for (size_t i = begin; i < std::min(begin + size, now.size()); ++i) fewer.erase(now[i]);
      if (relaxation.conflict_without_others(fewer)) kept = std::move(fewer);
    }
  }
  return kept;
}

/// The first conflict among all sets of this size, in ascending order.
std::optional<std::set<Pid>> conflict_of(size_t size, Relaxation& relaxation) {
  const auto& all = relaxation.demanding();
  std::vector<bool> chosen(all.size(), false);
  std::fill_n(chosen.begin(), size, true);
  do {
    std::set<Pid> some;
    for (size_t i = 0; i < all.size(); ++i) {
      if (chosen[i]) some.insert(all[i]);
    }
    if (relaxation.conflict_without_others(some)) return some;
  } while (relaxation.may_ask() && std::prev_permutation(chosen.begin(), chosen.end()));
  return std::nullopt;
}

}  // namespace

std::vector<Pid> smallest_conflict(const model::Application& application, const TreeLimits& limits) {
  Relaxation relaxation(application, limits);
  auto conflict = irreducible(relaxation);
  for (size_t size = 1; size < conflict.size() && relaxation.may_ask(); ++size) {
    if (auto smaller = conflict_of(size, relaxation)) conflict = std::move(*smaller);
  }
  return {conflict.begin(), conflict.end()};
}

std::string describe_conflict(const model::Application& application, const std::vector<Pid>& processes) {
  std::string text;
  for (const Pid pid : processes) {
    const auto& task = *application.find(pid);
    text += fmt::format("{}{} (in session {}, child of {} in session {})", text.empty() ? "" : ", ", pid, task.session,
                        task.parent, application.find(task.parent)->session);
  }
  const bool nested =
      std::ranges::any_of(application.tasks, [](const auto& task) { return !task.nested_pids.empty(); });
  return fmt::format(
      "{}: {}. Who has a parent was created below it, in the session that the parent was born in or in "
      "one that was begun below that{}",
      processes.size() == 1 ? "this process can have no history" : "these cannot have one history", text,
      nested ? ", by a process of the parent's pid namespace or, if the parent is its init, of one further outside"
             : "");
}

}  // namespace stasis::plan
