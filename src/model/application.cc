#include "model/application.h"

#include <signal.h>

#include <algorithm>
#include <utility>

namespace stasis::model {

const Task* Application::find(Pid pid) const {
  const auto found = std::ranges::find(tasks, pid, &Task::pid);
  return found == tasks.end() ? nullptr : &*found;
}

Task* Application::find(Pid pid) { return const_cast<Task*>(std::as_const(*this).find(pid)); }

TaskIndex::TaskIndex(const Application& application) {
  tasks_.reserve(application.tasks.size());
  for (const auto& task : application.tasks) tasks_.try_emplace(task.pid, &task);
}

Tid overruns_belong_to(const Task& task, const PosixTimer& timer) {
  if (timer.overrun <= 0 || timer.interval_ns == 0 || timer.remaining_ns == 0) return {};
  if (timer.notification == SIGEV_SIGNAL) return leader_of(task.pid);
  if (timer.notification != SIGEV_THREAD_ID) return {};
  const auto notified = std::ranges::find(task.threads, timer.notified_thread, &Thread::tid);
  return notified == task.threads.end() ? Tid{} : notified->tid;
}

}  // namespace stasis::model
