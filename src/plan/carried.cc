#include "plan/carried.h"

#include <algorithm>
#include <set>
#include <vector>

namespace stasis::plan {
namespace {

using Users = std::map<ObjectId, std::vector<Pid>>;

/// One kind of what tasks can have in common, and leave (unshare).
class Kind {
 public:
  Kind(const model::Application& application, ShareableKind kind, CreationTree& tree, const CarriedByTops& by_tops)
      : tree_(tree), by_tops_(by_tops[kind]) {
    const auto object = shareable[kind].object;
    for (const auto& task : application.tasks) {
      if (task.state == model::TaskState::zombie || (task.*object).value == 0) continue;
      users_[task.*object].push_back(task.pid);
      own_[task.pid] = task.*object;
    }
  }

  std::map<Pid, ObjectId> carried() {
    // Who is between others has it from birth or never; at the top of them holders could have it, too.
    std::map<Pid, ObjectId> at_tops;
    for (const auto& [object, all] : users_) {
      if (all.size() > 1) find_between(object, at_tops);
    }
    carried_.merge(at_tops);
    std::erase_if(carried_, [&](const auto& entry) {
      const Pid pid = entry.first;
      return own_is_shared(pid) && (!is_top_of_its_own(pid) || !put_in_order(pid));
    });
    return std::move(carried_);
  }

 private:
  /// How many of those who have it are at or below each process.
  std::map<Pid, size_t> counted(ObjectId object) const {
    std::map<Pid, size_t> below;
    for (const Pid user : users_.at(object)) {
      ++below[user];
      for (Pid at = user; at != tree_.root;) ++below[at = tree_.creator.at(at)];
    }
    return below;
  }

  /// Those at or between its users who have something else in the end.
  void find_between(ObjectId object, std::map<Pid, ObjectId>& at_tops) {
    const auto& all = users_.at(object);
    const auto below = counted(object);
    Pid top = all.front();
    while (below.at(top) < all.size()) top = tree_.creator.at(top);
    bool are_siblings = true;
    for (const auto& [pid, count] : below) {
      if (count == all.size() || has(pid, object)) continue;
      carried_.emplace(pid, object);
      are_siblings = false;
    }
    const bool have_holders = are_siblings && !spans_setsid(top, below) && !by_tops_.contains(object);
    if (!has(top, object) && !have_holders) at_tops.emplace(top, object);
  }

  /// Some children are born in the session that he was born in himself, and others in his own.
  bool spans_setsid(Pid creator, const std::map<Pid, size_t>& some) const {
    const auto has_any = [&](const std::map<Pid, std::vector<Pid>>& children) {
      const auto found = children.find(creator);
      return found != children.end() &&
             std::ranges::any_of(found->second, [&](Pid child) { return some.contains(child); });
    };
    return has_any(tree_.before_setsid) && has_any(tree_.children);
  }

  bool has(Pid pid, ObjectId object) const {
    const auto own = own_.find(pid);
    return own != own_.end() && own->second == object;
  }
  bool own_is_shared(Pid pid) const {
    const auto own = own_.find(pid);
    return own != own_.end() && users_.at(own->second).size() > 1;
  }

  /// What comes to it after its birth is new: all others have it from there.
  bool is_top_of_its_own(Pid pid) const {
    const ObjectId own = own_.at(pid);
    return !tree_.moved.contains(pid) && counted(own).at(pid) == users_.at(own).size();
  }

  bool is_born_with(Pid pid, ObjectId object) const {
    const auto carried = carried_.find(pid);
    return carried == carried_.end() ? has(pid, object) : carried->second == object;
  }

  /// Those who are born with what it carries come before those who are born with its own.
  bool put_in_order(Pid pid) {
    const auto with = [&](ObjectId object) {
      return [this, object](Pid child) { return is_born_with(child, object); };
    };
    const ObjectId first = carried_.at(pid), then = own_.at(pid);
    auto& early = tree_.before_setsid[pid];
    auto& late = tree_.children[pid];
    if (std::ranges::any_of(early, with(then)) && std::ranges::any_of(late, with(first))) return false;
    const std::set<Pid> deferred(tree_.deferred.begin(), tree_.deferred.end());
    for (auto* children : {&early, &late}) {
      if (std::ranges::any_of(*children, [&](Pid child) { return deferred.contains(child); })) return false;
      std::ranges::stable_partition(*children, with(first));
    }
    return true;
  }

  CreationTree& tree_;
  const std::set<ObjectId>& by_tops_;
  Users users_;
  std::map<Pid, ObjectId> own_, carried_;
};

}  // namespace

Carried carried_in(const model::Application& application, CreationTree& tree, const CarriedByTops& by_tops) {
  return {Kind(application, files_kind, tree, by_tops).carried(), Kind(application, fs_kind, tree, by_tops).carried()};
}

}  // namespace stasis::plan
