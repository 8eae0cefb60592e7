#include "plan/nested_numbers.h"

#include <algorithm>
#include <map>

namespace stasis::plan {
namespace {

class Numbering {
 public:
  explicit Numbering(model::Application& tree) : tree_(tree) {
    for (const auto& task : tree.tasks) homes_[task.pid] = task.pid_namespace;
    for (const auto& task : tree.tasks) {
      if (task.pid_namespace.value != 0 && task.pid_namespace == task.pid)
        above_[task.pid] = task.outer_namespace.value != 0 ? task.outer_namespace : homes_[task.parent];
    }
  }

  void run() {
    std::map<pid_t, std::pair<Pid, std::vector<pid_t>*>> places;  // by id
    for (auto& task : tree_.tasks) {
      places[task.pid.value] = {task.pid_namespace, &task.nested_pids};
      for (auto& thread : task.threads) {
        if (thread.tid != leader_of(task.pid)) places[thread.tid.value] = {task.pid_namespace, &thread.nested_tids};
      }
    }
    for (auto& [pid, leader] : tree_.dead_leaders) places[pid.value] = {leader.pid_namespace, &leader.nested_pids};
    std::map<Pid, pid_t> next;  // by namespace
    for (auto& [id, place] : places) {
      place.second->clear();
      for (const Pid space : line(place.first)) place.second->push_back(space.value == id ? 1 : 2 + next[space]++);
    }
    for (auto& task : tree_.tasks) {
      for (auto& thread : task.threads) {
        if (thread.tid == leader_of(task.pid)) thread.nested_tids = task.nested_pids;
      }
    }
  }

 private:
  /// From the outermost inwards. That there is an end has not been checked yet.
  std::vector<Pid> line(Pid space) const {
    std::vector<Pid> spaces;
    while (space.value != 0 && spaces.size() <= above_.size()) {
      spaces.push_back(space);
      const auto above = above_.find(space);
      space = above == above_.end() ? Pid{} : above->second;
    }
    std::ranges::reverse(spaces);
    return spaces;
  }

  model::Application& tree_;
  std::map<Pid, Pid> homes_, above_;
};

}  // namespace

void number_nested(model::Application& tree) { Numbering(tree).run(); }

}  // namespace stasis::plan
