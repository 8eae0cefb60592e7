#include "memory/lazy_guard.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "kernel/fdinfo.h"
#include "kernel/missing_pages.h"
#include "kernel/proc.h"
#include "kernel/process.h"
#include "kernel/processes.h"

namespace stasis::memory {
namespace {

using kernel::MissingPages;

std::string link_of(int fd) { return kernel::read_link(fmt::format("/proc/self/fd/{}", fd)).value_or(""); }

std::vector<int> descriptors() { return kernel::list_descriptors(getpid()).value_or(std::vector<int>{}); }

struct Watched {
  std::vector<int> processes;        ///< pidfds
  std::vector<MissingPages> spaces;  ///< copies of the descriptors
};

Watched open_here() {
  Watched watched;
  for (const int fd : descriptors()) {
    const auto what = link_of(fd);
    if (what == "anon_inode:[pidfd]") watched.processes.push_back(fd);
    if (what == "anon_inode:[userfaultfd]") watched.spaces.emplace_back(UniqueFd(fcntl(fd, F_DUPFD_CLOEXEC, 3)));
  }
  return watched;
}

/// They are stopped before the first is killed: whose parent has died is below nobody any more.
size_t end_processes(const std::vector<int>& pidfds) {
  std::set<pid_t> stopped;
  for (bool grows = true; grows;) {
    grows = false;
    for (const int pidfd : pidfds) {
      const auto text = kernel::read_file(fmt::format("/proc/self/fdinfo/{}", pidfd));
      const auto info = text ? kernel::parse_pidfd(*text) : Result<kernel::PidfdInfo>(kernel::PidfdInfo{});
      if (!info || info->pid <= 0) continue;
      grows = kernel::stop_descendants(info->pid, stopped) || grows;
    }
  }
  for (const int pidfd : pidfds) (void)kernel::pidfd_kill(pidfd, SIGKILL);
  for (const pid_t pid : stopped) kill(pid, SIGKILL);
  return stopped.size();
}

/// Whoever waits, and comes to wait, ends.
void deny_pages(std::vector<MissingPages> spaces) {
  constexpr int moment_ms = 50;
  for (;;) {
    std::erase_if(spaces, [](const MissingPages& space) { return space.is_gone(); });
    if (spaces.empty()) return;
    std::vector<pollfd> wanted;
    for (const auto& space : spaces) wanted.push_back({space.fd(), POLLIN, 0});
    poll(wanted.data(), wanted.size(), moment_ms);
    std::vector<MissingPages> born;
    for (const auto& space : spaces) {
      auto events = space.events();
      if (!events) continue;
      for (auto& event : *events) {
        if (auto* fork = std::get_if<MissingPages::Fork>(&event)) born.emplace_back(std::move(fork->child));
        const auto* fault = std::get_if<MissingPages::Fault>(&event);
        if (fault == nullptr) continue;
        const AddressRange page{fault->page, fault->page + page_size};
        (void)space.poison(page);
        space.wake(page);
      }
    }
    std::ranges::move(born, std::back_inserter(spaces));
  }
}

/// Nobody would come to know of the service's death as long as its connections stay open: neither the restore that
/// waits for it (whose processes may be unknown here: their pidfds are in a queue, or were never sent), nor a dump on
/// another machine that waits to be asked. Closed, not shut down (shutdown(2)): who waits for room in our queue would
/// not be woken.
void end_connections() {
  for (const int fd : descriptors()) {
    if (fd > STDERR_FILENO && link_of(fd).starts_with("socket:")) close(fd);
  }
}

/// Signals for the whole group of processes are the service's.
[[noreturn]] void guard(pid_t service, const std::function<void(const Error&)>& tell) {
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, nullptr);
  prctl(PR_SET_PDEATHSIG, SIGUSR1);
  while (getppid() == service) sigwaitinfo(&all, nullptr);
  end_connections();
  if (open_here().spaces.empty()) _exit(0);
  const size_t ended = end_watched_processes();
  tell(Error::conflict("serve missing pages", "lazy-pages was killed while memory of the application was still to come")
           .advise(fmt::format("its {} processes have been ended: restore it again", ended)));
  _exit(1);
}

}  // namespace

size_t end_watched_processes() {
  auto watched = open_here();
  const size_t ended = end_processes(watched.processes);
  deny_pages(std::move(watched.spaces));
  return ended;
}

Result<LazyGuard> LazyGuard::start(const std::function<void(const Error&)>& tell) {
  const pid_t service = getpid();
  const auto child = static_cast<pid_t>(syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0));
  if (child < 0) return fail_errno("clone", "the guard of lazy-pages");
  if (child == 0) guard(service, tell);
  return LazyGuard(child);
}

LazyGuard::LazyGuard(LazyGuard&& other) noexcept : pid_(std::exchange(other.pid_, 0)) {}

LazyGuard::~LazyGuard() {
  if (pid_ == 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

}  // namespace stasis::memory
