#include "cli/background.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iterator>
#include <string>

#include <fmt/format.h>

namespace stasis::cli {

Status write_pidfile(const Session& session, pid_t pid) {
  const auto& name = session.options().pidfile;
  if (name.empty()) return {};
  const std::string path = session.work_path(name);
  const auto problem = [&](int error) {
    return fail(Error::system("write the pidfile", error, path).advise("name another place with --pidfile"));
  };
  const UniqueFd file(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (!file.valid()) return problem(errno);
  const std::string text = std::to_string(pid);
  const ssize_t written = write(file.get(), text.data(), text.size());
  if (written == static_cast<ssize_t>(text.size())) return {};
  const int error = written < 0 ? errno : ENOSPC;
  unlink(path.c_str());
  return problem(error);
}

void remove_pidfile(const Session& session) {
  const auto& name = session.options().pidfile;
  if (!name.empty()) unlink(session.work_path(name).c_str());
}

Status leave_terminal() {
  setsid();
  const UniqueFd nothing(open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!nothing.valid()) return fail_errno("open", "/dev/null");
  for (const int standard : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) dup2(nothing.get(), standard);
  return {};
}

Status tell_status(int fd) {
  if (fd < 0) return {};
  const UniqueFd status(fd);
  const char ready = 0;
  if (write(status.get(), &ready, 1) == 1) return {};
  return fail_errno("write to --status-fd", fmt::format("descriptor {}", fd));
}

Status say_ready(const Session& session, int status_fd) {
  TRY(session.run_scripts("status-ready", 0));
  return tell_status(status_fd);
}

Result<Ending> Ending::watch() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, number);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  UniqueFd fd(signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd.valid()) return fail_errno("signalfd");
  return Ending(std::move(fd));
}

Status Ending::wait_for(int descriptor) const {
  pollfd wanted[] = {{signals_.get(), POLLIN, 0}, {descriptor, POLLIN, 0}};
  while (poll(wanted, std::size(wanted), -1) < 0) {
    if (errno != EINTR) return fail_errno("poll");
  }
  if (wanted[0].revents == 0) return {};
  return fail(Error::conflict("wait", "a signal came to end it"));
}

CLI::Option* add_status_fd(CLI::App& app, int& fd, const char* when) {
  return app
      .add_option("--status-fd", fd, fmt::format("Write a zero byte to this descriptor, and close it, when {}", when))
      ->type_name("FD")
      ->check(CLI::NonNegativeNumber);
}

}  // namespace stasis::cli
