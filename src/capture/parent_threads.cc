// Children belong to threads: to the one that has created them, or, when that has ended or they are adopted, to the
// first that lives (kernel/exit.c, find_new_reaper). That is how a restore comes by them, too. Any other thread has to
// create them itself, which it does if they have not come to the process as orphans.
#include <fmt/format.h>

#include <algorithm>

#include "capture/walk.h"
#include "plan/tree.h"

namespace stasis::capture {

void check_parent_threads(resource::CaptureContext& context) {
  const auto& application = context.application;
  const model::TaskIndex tasks(application);
  const auto depends = [&](const model::Task& task) {
    return task.parent_thread.value != 0 && plan::depends_on_parent_thread(tasks, task);
  };
  if (context.diagnostics.refused() || std::ranges::none_of(application.tasks, depends)) return;
  const auto tree = plan::plan_tree(application);
  if (!tree) return;  // the plan says why
  for (const auto& task : application.tasks) {
    if (!depends(task) || !tree->comes_to_its_parent(task.pid)) continue;
    context.diagnostics.refuse(
        fmt::format("task {} '{}'", task.pid, task.name),
        fmt::format("it is the child of a thread of {} that is not its first one and has not created it", task.parent),
        "If it has a parent-death signal, take that back before the dump (PR_SET_PDEATHSIG 0)");
  }
}

}  // namespace stasis::capture
