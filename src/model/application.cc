#include "model/application.h"

#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <set>
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

std::string terminal_name(uint64_t device) {
  if (is_pseudo_terminal(device)) return fmt::format("/dev/pts/{}", index_of_terminal(device));
  return fmt::format("terminal {}:{}", device >> 8, device & 0xff);
}

std::string problem_with_terminals(const Application& application) {
  std::set<Pid> sessions;
  for (const auto& [number, terminal] : application.terminals) {
    const auto name = terminal_name(number);
    if (terminal.session.value == 0) continue;
    const auto* leader = application.find(terminal.session);
    if (leader == nullptr || leader->session != leader->pid || leader->state == TaskState::zombie)
      return fmt::format("{} controls session {}, which nobody leads", name, terminal.session);
    if (leader->controlling_terminal != number || !sessions.insert(terminal.session).second)
      return fmt::format("{} controls session {}, whose leader has another terminal", name, terminal.session);
    const auto is_in_foreground = [&terminal = terminal](const Task& task) {
      return task.group == terminal.foreground && task.session == terminal.session;
    };
    if (terminal.foreground.value != 0 && std::ranges::none_of(application.tasks, is_in_foreground))
      return fmt::format("nobody of its session is in group {}, in the foreground of {}", terminal.foreground, name);
  }
  for (const auto& task : application.tasks) {
    const auto terminal = application.terminals.find(task.controlling_terminal);
    if (terminal == application.terminals.end()) continue;
    if (terminal->second.session != task.session || task.state == TaskState::zombie)
      return fmt::format("{} cannot control process {}: {}", terminal_name(terminal->first), task.pid,
                         task.state == TaskState::zombie ? "it has ended" : "it is in another session");
  }
  return {};
}

}  // namespace stasis::model
