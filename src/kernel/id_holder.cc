#include "kernel/id_holder.h"

#include <fmt/format.h>

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

}  // namespace stasis::kernel
