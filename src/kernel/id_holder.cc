#include "kernel/id_holder.h"

#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <fstream>

#include "kernel/proc.h"
#include "kernel/processes.h"

namespace stasis::kernel {
namespace {

std::string member_of(pid_t id) {
  for (const pid_t pid : list_processes().value_or(std::vector<pid_t>{})) {
    const auto stat = read_stat(pid);
    if (!stat || (stat->pgrp != id && stat->session != id)) continue;
    return fmt::format("the {} of process {} '{}'", stat->session == id ? "session" : "process group", pid, stat->comm);
  }
  return {};
}

}  // namespace

std::string holder_of_id(pid_t id) {
  const auto status = read_status(id);
  if (status && status->tgid == id) return fmt::format("process {} '{}'", id, status->name);
  if (status) return fmt::format("a thread of process {} '{}'", status->tgid, status->name);
  const auto member = member_of(id);
  return member.empty() ? "another process" : member;
}

pid_t quiet_ids(pid_t count, unsigned place) {
  constexpr pid_t first = 1000;
  pid_t limit = 32768, last = 0;
  std::string ignored;
  std::ifstream("/proc/sys/kernel/pid_max") >> limit;
  std::ifstream load("/proc/loadavg");
  load >> ignored >> ignored >> ignored >> ignored >> last;
  const auto places = static_cast<unsigned>(std::max(1, limit / 2 / count));
  const pid_t begin = last + limit / 4 + static_cast<pid_t>(place % places) * count;
  for (pid_t tried = 0, at = begin, free = 0; tried < limit; ++tried, ++at) {
    if (at >= limit) at = first + (at - limit) % (limit - first), free = 0;
    // The number of a group is taken, too, when its leader has long ended.
    const auto is_unknown = [](pid_t whom) { return kill(whom, 0) != 0 && errno == ESRCH; };
    free = is_unknown(at) && is_unknown(-at) ? free + 1 : 0;
    if (free == count) return at - count + 1;
  }
  return 0;
}

}  // namespace stasis::kernel
