#include "execute/end_repair.h"

#include <fmt/format.h>

#include <vector>

#include "base/parallel.h"
#include "kernel/process.h"
#include "kernel/tcp.h"

namespace stasis::execute {

Status end_repairs(const plan::Program& program, const std::map<Pid, pid_t>& host_pids, int fail_at_command) {
  std::vector<std::pair<size_t, const plan::EndRepair*>> ends;  // with their places in the program
  std::map<Pid, UniqueFd> processes;
  for (size_t index = 0; index < program.commands.size(); ++index) {
    const auto* end = std::get_if<plan::EndRepair>(&program.commands[index].action);
    if (end == nullptr) continue;
    ends.emplace_back(index, end);
    auto& process = processes[end->task];
    if (!process.valid()) process = TRY(kernel::pidfd_open_thread(host_pids.at(end->task)));
  }
  return parallel_for(ends.size(), [&](size_t at) -> Status {
    const auto& [index, end] = ends[at];
    const auto subject =
        fmt::format("command {} {}, descriptor {} of task {}", index, plan::EndRepair::name, end->fd, end->task);
    if (static_cast<int>(index) == fail_at_command)
      return fail(Error::system("bring a TCP connection to life", EIO, subject));
    const auto connection = TRY(kernel::pidfd_getfd(processes.at(end->task).get(), end->fd));
    TRY_IN("bring a TCP connection to life: " + subject, kernel::end_repair(connection.get(), end->reuse_address));
    return {};
  });
}

}  // namespace stasis::execute
