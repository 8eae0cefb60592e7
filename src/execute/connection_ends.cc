#include "execute/connection_ends.h"

#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "kernel/proc.h"
#include "kernel/process.h"
#include "kernel/socket_option.h"
#include "kernel/tcp.h"

namespace stasis::execute {
namespace {

bool stands(pid_t pid) {
  const auto threads = kernel::list_threads(pid);
  return !threads || std::ranges::all_of(*threads, [&](pid_t tid) {
    const auto stat = kernel::read_thread_stat(pid, tid);
    return !stat || stat->is_dead() || stat->state == 'T' || stat->state == 't';
  });
}

/// SIGSTOP stops whoever is not stopped already, by us or by another. Nobody waits long for a process that was to be
/// killed anyway.
void stop(pid_t pid) {
  if (kill(pid, SIGSTOP) != 0) return;
  for (int patience = 10'000; patience > 0 && !stands(pid); --patience) usleep(100);
}

/// The leader may have ended: then the descriptors are those of the others.
pid_t living_thread(pid_t pid) {
  for (const pid_t tid : kernel::list_threads(pid).value_or(std::vector<pid_t>{})) {
    const auto stat = kernel::read_thread_stat(pid, tid);
    if (stat && !stat->is_dead()) return tid;
  }
  return pid;
}

void silence_connections(pid_t pid) {
  const pid_t living = living_thread(pid);
  const auto descriptors = kernel::list_descriptors(living);
  const auto process = kernel::pidfd_open_thread(living);
  if (!descriptors || !process) return;
  for (const int fd : *descriptors) {
    const auto file = kernel::pidfd_getfd(process->get(), fd);
    if (!file) continue;
    const auto protocol = kernel::socket_option<int>(file->get(), SOL_SOCKET, SO_PROTOCOL, "SO_PROTOCOL");
    if (!protocol || *protocol != IPPROTO_TCP) continue;
    const auto info = kernel::tcp_info(file->get());
    if (info && kernel::is_connected(info->state)) (void)kernel::set_repair(file->get(), true);
  }
}

}  // namespace

ConnectionEnds::ConnectionEnds(const plan::Program& program)
    : has_connections_(std::ranges::any_of(program.commands, [](const auto& command) {
        return std::holds_alternative<plan::EndRepair>(command.action);
      })) {}

void ConnectionEnds::prepare(const std::vector<pid_t>& doomed) {
  if (!has_connections_) return;
  std::vector<pid_t> fresh;
  std::ranges::copy_if(doomed, std::back_inserter(fresh), [&](pid_t pid) { return prepared_.insert(pid).second; });
  for (const pid_t pid : fresh) stop(pid);
  for (const pid_t pid : fresh) silence_connections(pid);
}

}  // namespace stasis::execute
