#include "resource/machine_terminal.h"

#include <asm/ioctls.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#include "kernel/proc.h"

namespace stasis::resource {
namespace {

using plan::call;

/// Its usual path.
std::string node_of(uint64_t device) {
  constexpr unsigned first_serial =
      64;  // of the major number of virtual terminals (Documentation/admin-guide/devices.txt)
  const unsigned low = minor(device);
  if (major(device) == 5) return "/dev/console";
  return low < first_serial ? fmt::format("/dev/tty{}", low) : fmt::format("/dev/ttyS{}", low - first_serial);
}

bool leads_to(const std::string& path, uint64_t device) {
  struct stat about{};
  return stat(path.c_str(), &about) == 0 && S_ISCHR(about.st_mode) && about.st_rdev == device;
}

void enter(model::Application& application, const TerminalDevice& device, uint64_t number) {
  application.terminals.try_emplace(number, model::Terminal{.master = {},
                                                            .session = device.session,
                                                            .foreground = device.foreground,
                                                            .slave_opened = true,
                                                            .path = node_of(number)});
}

}  // namespace

void capture_machine_terminal(CaptureContext& context, CapturedTerminal& captured) {
  auto& device = *captured.device;
  device.of_machine = true;
  if (!captured.slave_fd.valid()) {
    context.diagnostics.refuse(captured.subject, "the terminal has hung up", "close it before the dump");
    return;
  }
  const int fd = captured.slave_fd.get();
  capture_modes(fd, device);
  unsigned int number = device.device;  // the console is one of the others
  (void)ioctl(fd, TIOCGDEV, &number);
  for (const auto& task : context.application.tasks) {
    if (task.controlling_terminal != number || task.state == model::TaskState::zombie) continue;
    if (context.application.find(task.session) == nullptr) {
      context.diagnostics.refuse(captured.subject, "it controls a session that is not part of the tree",
                                 "pass --shell-job, or dump the leader of the session, too");
      return;
    }
    const auto stat = kernel::read_stat(context.witness(task));
    device.session = task.session;
    device.foreground = stat ? group_in_session(context, task.session, stat->tty_pgrp) : Pid{};
    return enter(context.application, device, number);
  }
}

void link_machine_terminals(model::Application& application) {
  for (const auto& [id, object] : application.objects) {
    const auto* device = object.as<TerminalDevice>();
    if (device == nullptr || !device->of_machine || device->session.value == 0) continue;
    const auto* leader = application.find(device->session);
    // CRIU's images do not say by what a task is controlled.
    const bool is_said = leader != nullptr && leader->controlling_terminal != 0;
    enter(application, *device, is_said ? leader->controlling_terminal : device->device);
  }
}

std::string path_of_machine_terminal(const Terminal& terminal) {
  const uint64_t device = terminal.known->device;
  return leads_to(terminal.path, device) ? terminal.path : node_of(device);
}

void validate_machine_terminal(const Terminal& terminal, Diagnostics& diagnostics) {
  const uint64_t device = terminal.known->device;
  if (const auto path = path_of_machine_terminal(terminal); !leads_to(path, device)) {
    diagnostics.refuse(terminal.known->describe(), fmt::format("{} is not this terminal here", path),
                       "restore on a machine that has it, and where /dev has its node");
  }
}

void furnish_machine_terminal(const Terminal& terminal, plan::Sink& sink) {
  const auto& device = *terminal.known;
  const auto path = plan::text(path_of_machine_terminal(terminal));
  constexpr auto anything = plan::Expectation::Kind::anything;  // a line may have other speeds, a screen another size
  plan::Calls calls;
  int back = 0;
  const auto on_it = [&](auto request, auto argument) {
    calls.push_back(plan::expecting(call(SYS_ioctl, plan::ResultOf{--back}, request, std::move(argument)), anything));
  };
  calls.push_back(call(SYS_openat, AT_FDCWD, path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC, 0));
  if (device.locked_modes) on_it(TIOCSLCKTRMIOS, plan::struct_in(*device.locked_modes));
  if (device.modes) on_it(set_termios, plan::struct_in(*device.modes));
  if (device.window.ws_row != 0) on_it(TIOCSWINSZ, plan::struct_in(device.window));
  if (device.exclusive) on_it(TIOCEXCL, 0);
  calls.push_back(call(SYS_close, plan::ResultOf{--back}));
  sink.perform(device.describe(), std::string(plan::only_on_success), std::move(calls));
}

}  // namespace stasis::resource
