#include "resource/pseudo_terminal.h"

#include <asm/ioctls.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "model/places.h"
#include "resource/descriptors.h"
#include "resource/machine_terminal.h"
#include "resource/terminal_queue.h"

namespace stasis::resource {
namespace {

using plan::call;

bool flag(int fd, unsigned long request) {
  int value = 0;
  return ioctl(fd, request, &value) == 0 && value != 0;
}

std::string node_of(const TerminalDevice& device) {
  return fmt::format("/dev/pts/{}", model::index_of_terminal(device.device));
}

/// The session leader's number, as the master's holder may ask for it.
void capture_session(CaptureContext& context, const CapturedTerminal& captured) {
  auto& device = *captured.device;
  pid_t session = 0, group = 0;
  if (ioctl(captured.master_fd.get(), TIOCGSID, &session) != 0) return;  // ENOTTY: it controls none
  const auto leader = context.host_to_tree.find(session);
  if (leader == context.host_to_tree.end()) {
    context.diagnostics.warn(
        captured.subject,
        fmt::format("{} controls session {}, which is not part of the tree", device.describe(), session),
        "that session is hung up when the tree ends, and is not restored");
    return;
  }
  device.session = Pid{leader->second};
  if (ioctl(captured.master_fd.get(), TIOCGPGRP, &group) != 0 || group == 0) return;
  device.foreground = group_in_session(context, device.session, group);
}

/// Somebody has opened the slave side, and nobody has it open: the master sees a hang-up (drivers/tty/pty.c,
/// pty_close).
bool slave_was_closed(int master) {
  pollfd asked{master, POLLIN, 0};
  return poll(&asked, 1, 0) > 0 && (asked.revents & POLLHUP) != 0;
}

}  // namespace

Pid group_in_session(CaptureContext& context, Pid session, pid_t host_group) {
  // A group may be left without its leader: its members tell what number it has in the tree.
  for (const auto& task : context.application.tasks) {
    if (task.session != session || task.state == model::TaskState::zombie) continue;
    const auto status = kernel::read_status(context.witness(task));
    if (status && !status->ns_pgid.empty() && status->ns_pgid.front() == host_group) return task.group;
  }
  const auto known = context.host_to_tree.find(host_group);
  if (known == context.host_to_tree.end()) return {};
  const auto* zombie = context.application.find(Pid{known->second});
  const bool leads = zombie != nullptr && zombie->group == zombie->pid && zombie->session == session;
  return leads ? zombie->pid : Pid{};
}

Status capture_pair(CaptureContext& context, CapturedTerminal& captured) {
  auto& device = *captured.device;
  const int master = captured.master_fd.get();
  struct stat node{};
  const auto path = node_of(device);
  if (stat(path.c_str(), &node) != 0 || node.st_rdev != device.device ||
      (captured.slave_fd.valid() && node.st_dev != device.filesystem)) {
    context.diagnostics.refuse(captured.subject, "it belongs to another instance of devpts than the one at /dev/pts",
                               "dump it from the mount namespace that it was opened in");
    return {};
  }
  if (captured.slave_hung_up) {
    context.diagnostics.refuse(captured.subject, "it was hung up by vhangup(2), while its master side goes on",
                               "close it before the dump");
  }
  KernelTermios modes;
  // All that is asked of a master is what its slave side has (drivers/tty/tty_io.c, tty_pair_get_tty).
  if (ioctl(master, get_termios, &modes) != 0) return fail_errno("TCGETS2", captured.subject);
  int discipline = 0;
  if (captured.slave_fd.valid() && ioctl(captured.slave_fd.get(), TIOCGETD, &discipline) == 0 && discipline != 0) {
    context.diagnostics.refuse(
        captured.subject,
        fmt::format("it has line discipline {} (TIOCSETD): what that has in hand nobody is told", discipline),
        "have the program put back the usual one (N_TTY) before the dump");
    return {};  // only that one can be asked for what waits in it
  }
  device.modes = modes;
  KernelTermios locked;  // without speeds
  if (ioctl(master, TIOCGLCKTRMIOS, &locked) != 0) return fail_errno("TIOCGLCKTRMIOS", captured.subject);
  device.locked_modes = locked;
  (void)ioctl(master, TIOCGWINSZ, &device.window);
  device.is_pair = true;
  device.filesystem = static_cast<uint32_t>(node.st_dev);
  device.uid = node.st_uid, device.gid = node.st_gid, device.mode = node.st_mode & 07777;
  device.locked = flag(master, TIOCGPTLCK), device.packet_mode = flag(master, TIOCGPKT);
  // Each side has a flag of its own.
  device.master_exclusive = flag(master, TIOCGEXCL);
  device.exclusive = captured.slave_fd.valid() && flag(captured.slave_fd.get(), TIOCGEXCL);
  device.slave_opened = captured.slave_fd.valid() || slave_was_closed(master);
  capture_session(context, captured);
  device.slave_opened = device.slave_opened || device.session.value != 0;
  TRY(capture_queues(master, device, captured.subject, context.diagnostics));
  context.application.terminals[device.device] = {captured.master, device.session, device.foreground,
                                                  device.slave_opened};
  context.application.descriptions.at(captured.master).starts_last = starts_late(device);
  return {};
}

// ---- restore

void furnish_pair(const TerminalDevice& device, int master, int slave, plan::Sink& sink) {
  auto calls = fill_queues(device, master, slave);
  if (device.locked_modes && *device.locked_modes != KernelTermios{})
    calls.push_back(call(SYS_ioctl, master, TIOCSLCKTRMIOS, plan::struct_in(*device.locked_modes)));
  calls.push_back(call(SYS_ioctl, master, TIOCSWINSZ, plan::struct_in(device.window)));
  const auto node = plan::text(node_of(device));
  if (device.mode != 0) {
    calls.push_back(call(SYS_fchownat, AT_FDCWD, node, device.uid, device.gid, 0));
    calls.push_back(call(SYS_fchmodat, AT_FDCWD, node, device.mode));
  }
  sink.perform(device.describe(), "", std::move(calls));
}

bool starts_late(const TerminalDevice& device) {
  return device.locked || device.packet_mode || device.exclusive || device.master_exclusive;
}

void start_pair(const TerminalDevice& device, const model::OpenDescription& description, int master, plan::Sink& sink) {
  plan::Perform perform{.purpose = device.describe()};
  auto& calls = perform.calls;
  const auto on = plan::struct_in(1);
  if (device.packet_mode) calls.push_back(call(SYS_ioctl, master, TIOCPKT, on));
  if (device.master_exclusive) calls.push_back(call(SYS_ioctl, master, TIOCEXCL));
  if (device.exclusive) {
    calls.push_back(call(SYS_ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC));
    calls.push_back(call(SYS_ioctl, plan::ResultOf{-1}, TIOCEXCL));
    calls.push_back(call(SYS_close, plan::ResultOf{-2}));
  }
  if (device.locked) calls.push_back(call(SYS_ioctl, master, TIOCSPTLCK, on));
  perform.starts.push_back({master, description.id});
  sink.add(std::move(perform));
}

void make_hung_up(const TerminalDevice& device, std::span<const plan::Placement> placements, plan::Sink& sink) {
  const uint32_t index = model::index_of_terminal(device.device);
  const int master = placements.front().scratch;
  plan::Perform perform{.purpose = device.describe() + ", hung up"};
  auto& calls = perform.calls;
  calls.push_back(call(plan::Call::open_terminal, index, O_RDWR | O_NOCTTY | O_CLOEXEC, plan::Out{4ull * index}));
  calls.push_back(call(plan::Call::move_fd, plan::ResultOf{-1}, master, O_CLOEXEC, 1));
  calls.push_back(call(SYS_ioctl, master, TIOCSPTLCK, plan::struct_in(0)));
  for (const auto& placement : placements) {
    const auto& description = *placement.description;
    calls.push_back(call(SYS_ioctl, master, TIOCGPTPEER, reopen_flags(description.flags)));
    calls.push_back(call(plan::Call::move_fd, plan::ResultOf{-1}, placement.fd, 0));
    perform.creates.push_back({placement.fd, description.id});
  }
  calls.push_back(call(SYS_close, master));
  sink.add(std::move(perform));
  for (const auto& placement : placements) set_status_flags(*placement.description, placement.fd, sink);
}

// ---- images

namespace {

/// What was opened as /dev/tty leads to a terminal of the tree if the image says so, or, where CRIU does not, the
/// holder's terminal is one.
Status lead_through_doors(model::Application& application) {
  std::map<ObjectId, model::Place> places;
  for (auto& [id, description] : application.descriptions) {
    const auto* terminal = description.state.as<Terminal>();
    if (terminal == nullptr || !terminal->is_current) continue;
    uint64_t number = terminal->opened_on;
    if (number == 0) {
      if (places.empty()) places = model::first_places(application);
      if (const auto holder = places.find(id); holder != places.end())
        number = holder->second.task->controlling_terminal;
    }
    if (terminal->known->of_machine) continue;  // has been found
    const auto pair = application.terminals.find(number);
    const bool is_pair = pair != application.terminals.end() && pair->second.path.empty();
    if (!is_pair && terminal->opened_on == 0) continue;
    if (!is_pair) {
      return fail(Error::invalid("decode terminal", "field tty.opened_on is no terminal of the tree",
                                 fmt::format("files.img, file {}", id)));
    }
    auto led = std::make_shared<Terminal>(*terminal);
    const auto& master = *application.descriptions.at(pair->second.master).state.as<Terminal>();
    led->device = master.device, led->known = master.known;
    description.state = {std::move(led)};
  }
  return {};
}

}  // namespace

Status link_terminals(model::Application& application) {
  for (auto& [id, description] : application.descriptions) {
    const auto* terminal = description.state.as<Terminal>();
    if (terminal == nullptr || !terminal->is_master) continue;
    const auto& device = *terminal->known;
    const bool fresh =
        application.terminals
            .try_emplace(device.device, model::Terminal{id, device.session, device.foreground, device.slave_opened})
            .second;
    if (!fresh) {
      return fail(Error::invalid("decode terminal", "there are two descriptions of the master side of one terminal",
                                 fmt::format("files.img, file {}", id)));
    }
    description.starts_last = starts_late(device);
  }
  TRY(lead_through_doors(application));
  link_machine_terminals(application);
  if (application.terminals.empty()) return {};
  // CRIU does not say whom a terminal controls: all of its session.
  for (auto& [number, terminal] : application.terminals) {
    if (terminal.session.value == 0) continue;
    terminal.slave_opened = true;
    const auto is_in_foreground = [&](const model::Task& task) {
      return task.group == terminal.foreground && task.session == terminal.session;
    };
    if (std::ranges::none_of(application.tasks, is_in_foreground)) terminal.foreground = {};
  }
  const bool known = std::ranges::any_of(application.tasks, &model::Task::controlling_terminal);
  for (const auto& [number, terminal] : application.terminals) {
    if (terminal.session.value == 0 || known) continue;
    for (auto& task : application.tasks) {
      if (task.session == terminal.session && task.state != model::TaskState::zombie)
        task.controlling_terminal = number;
    }
  }
  if (auto problem = model::problem_with_terminals(application); !problem.empty())
    return fail(Error::invalid("decode terminal", std::move(problem), "tty-info.img"));
  return {};
}

}  // namespace stasis::resource
