#include "plan/carried.h"

#include <vector>

namespace stasis::plan {
namespace {

using Users = std::map<ObjectId, std::vector<Pid>>;

/// Those at or between its users who have something else in the end. Whoever shares that with others, too, cannot carry
/// both.
std::vector<Pid> between(ObjectId object, const Users& users, const std::map<Pid, ObjectId>& own,
                         const CreationTree& tree) {
  const auto& all = users.at(object);
  std::map<Pid, size_t> below;  // how many of them are at or below
  for (const Pid user : all) {
    ++below[user];
    for (Pid at = user; at != tree.root;) ++below[at = tree.creator.at(at)];
  }
  Pid top = all.front();
  while (below.at(top) < all.size()) top = tree.creator.at(top);
  std::vector<Pid> found;
  for (const auto& [pid, count] : below) {
    const auto has = own.find(pid);
    if ((pid == top || count < all.size()) && (has == own.end() || has->second != object)) found.push_back(pid);
  }
  if (found == std::vector{top}) return {};  // they are siblings
  std::erase_if(found, [&](Pid pid) {
    const auto has = own.find(pid);
    return has != own.end() && users.at(has->second).size() > 1;
  });
  return found;
}

std::map<Pid, ObjectId> carried_of(const model::Application& application, ObjectId model::Task::* kind,
                                   const CreationTree& tree) {
  Users users;
  std::map<Pid, ObjectId> own;
  for (const auto& task : application.tasks) {
    if (task.state == model::TaskState::zombie || (task.*kind).value == 0) continue;
    users[task.*kind].push_back(task.pid);
    own[task.pid] = task.*kind;
  }
  std::map<Pid, ObjectId> carried;
  for (const auto& [object, all] : users) {
    if (all.size() < 2) continue;
    for (const Pid pid : between(object, users, own, tree)) carried.emplace(pid, object);
  }
  return carried;
}

}  // namespace

Carried carried_in(const model::Application& application, const CreationTree& tree) {
  return {carried_of(application, &model::Task::descriptors, tree), carried_of(application, &model::Task::fs, tree)};
}

}  // namespace stasis::plan
