#include "model/application.h"

#include <algorithm>
#include <utility>

namespace stasis::model {

const Task* Application::find(Pid pid) const {
  const auto found = std::ranges::find(tasks, pid, &Task::pid);
  return found == tasks.end() ? nullptr : &*found;
}

Task* Application::find(Pid pid) { return const_cast<Task*>(std::as_const(*this).find(pid)); }

}  // namespace stasis::model
