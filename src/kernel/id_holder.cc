#include "kernel/id_holder.h"

#include <dirent.h>
#include <fmt/format.h>

#include <charconv>
#include <memory>
#include <string_view>

#include "kernel/proc.h"

namespace stasis::kernel {
namespace {

std::string member_of(pid_t id) {
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(opendir("/proc"), closedir);
  if (!directory) return {};
  while (const dirent* entry = readdir(directory.get())) {
    const std::string_view name = entry->d_name;
    pid_t pid = 0;
    if (std::from_chars(name.begin(), name.end(), pid).ptr != name.end()) continue;
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
